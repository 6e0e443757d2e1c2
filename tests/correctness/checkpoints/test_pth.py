"""`.pth` files of every kind that is read, and the refusals of all others."""

import os
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf.checkpoints.pth import open_pth
from llama_perf.llama.presets import PRESETS
from tests.correctness.support import weights_samples as samples
from tests.correctness.support.weights_samples import TINY, all_weights, file_refusal

CONFIG = "config.json"
BUFFERS = (
    *("freqs_cis", "causal_mask", "rope.freqs", "layers.1.attention.kv_cache.k_cache"),
    "layers.0.attention.inner_attention.rope.freqs",
)
FORMS: dict[str, Any] = {
    "wqkv": lambda weights: weights,
    "wq, wk, wv": samples.split_qkv,
    "llama2.c": lambda weights: {"model": weights, "step": 3},
    "parameters": lambda weights: {k: torch.nn.Parameter(weights[k]) for k in weights},
    "buffers": lambda weights: {**weights, **dict.fromkeys(BUFFERS, torch.ones(2))},
}
DAMAGED = (
    "damaged, truncated, or no checkpoint; nothing in it was executed; allowed: a file"
    " that torch.save wrote"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    samples.write_json(tmp_path / CONFIG, samples.CONFIG_JSON)
    return tmp_path


def save(folder: Path, weights: object, **options: bool) -> Path:
    torch.save(weights, folder / "model.pth", **options)
    return folder / "model.pth"


def their_name(name: str) -> str:
    return name


def write(folder: Path, change: dict[str, Any]) -> Path:
    """The tiny model's file, with other tensors or without those that are None."""
    samples.write_json(folder / CONFIG, samples.CONFIG_JSON)
    weights = {**all_weights(), **change}
    return save(folder, {name: w for name, w in weights.items() if w is not None})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_reads(folder: Path, form: str, dtype: torch.dtype, as_zip: bool) -> None:
    wanted = {name: tensor.to(dtype) for name, tensor in all_weights().items()}
    path = save(folder, FORMS[form](wanted), _use_new_zipfile_serialization=as_zip)
    reader = open_pth(path)
    assert reader.source == f"pth:{folder.name}"
    samples.assert_same(reader, wanted)
    assert not reader.embedding().requires_grad
    # Writing to a tensor leaves the file alone.
    reader.embedding().zero_()
    samples.assert_same(open_pth(path), wanted)


def test_where_the_configuration_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "tiny-2L", TINY)
    folder = tmp_path / "Some-Tiny-2L-Instruct"
    folder.mkdir()
    weights = all_weights()
    path = save(folder, weights)
    assert open_pth(path).config == TINY
    samples.write_json(folder / "params.json", samples.PARAMS_JSON | {"norm_eps": 1e-6})
    samples.write_json(folder / CONFIG, {**samples.CONFIG_JSON, "rms_norm_eps": 1e-6})
    assert open_pth(path).config.norm_eps == 1e-6
    (folder / CONFIG).unlink()
    assert open_pth(path).config == replace(TINY, norm_eps=1e-6)
    (folder / "params.json").unlink()
    save(folder, {**weights, "norm.weight": torch.ones(3)})
    preset = "the preset tiny-2L, from the folder's name,"
    message = f"norm.weight: shape (3,) is not allowed; {preset} wants (32,)"
    assert file_refusal(path) == message


def test_tied_by_what_the_file_holds(folder: Path) -> None:
    tied = {**samples.CONFIG_JSON, "tie_word_embeddings": True}
    samples.write_json(folder / CONFIG, tied)
    weights = all_weights()
    assert not open_pth(save(folder, weights)).config.tied_embeddings
    del weights["output.weight"]
    assert open_pth(save(folder, weights)).config.tied_embeddings
    # Both names share a storage.
    samples.write_json(folder / CONFIG, samples.CONFIG_JSON)
    weights["output.weight"] = weights["tok_embeddings.weight"]
    reader = open_pth(save(folder, weights))
    assert reader.config.tied_embeddings
    assert list(reader.final()) == ["norm.weight"]


@dataclass
class Evil:
    target: Path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle", "later protocol"])
def test_a_pickle_that_would_run_code_is_refused(folder: Path, how: str) -> None:
    evil = {"evil": Evil(folder / "created")}
    is_zip = how == "zip"
    path = save(folder, all_weights() | evil, _use_new_zipfile_serialization=is_zip)
    if protocol := {"plain pickle": 2, "later protocol": 5}.get(how):
        path.write_bytes(pickle.dumps(evil, protocol=protocol))
    message = (
        "refused: it asks for posix.system, which can run code; nothing was executed;"
        " allowed: a dict of tensors"
    )
    assert file_refusal(path) == (DAMAGED if how == "later protocol" else message)
    assert not (folder / "created").exists()


def test_no_weights(folder: Path) -> None:
    absent = "cannot be read: No such file or directory"
    assert file_refusal(folder / "model.pth", open_pth) == absent
    kind = "is not allowed; allowed: a dict of tensors, at least one"
    step = "step: int is not allowed; allowed: unquantized tensors, or those of linear"
    values: list[tuple[object, str]] = [
        ([1, 2], f"list {kind}"),
        ({}, f"dict {kind}"),
        ({**all_weights(), "step": 3}, step),
    ]
    for value, message in values:
        assert file_refusal(save(folder, value)).startswith(message)
    (folder / "model.pth").write_bytes(b"these are no weights" * 20)
    assert file_refusal(folder / "model.pth") == DAMAGED


def test_no_or_a_bad_configuration(tmp_path: Path) -> None:
    path = save(tmp_path, {})
    assert file_refusal(path).startswith(
        "the configuration is missing; allowed: config.json, params.json, or a folder"
        " named after one of the presets 7B, 13B,"
    )
    for text, message in {
        "{": "Invalid JSON: EOF while parsing",
        "[1]": "[1] is not allowed; allowed: an object",
        "{}": "the field 'hidden_size' is missing",
    }.items():
        (tmp_path / CONFIG).write_text(text, encoding="utf-8")
        assert file_refusal(path).startswith(f"{tmp_path / CONFIG}: {message}")

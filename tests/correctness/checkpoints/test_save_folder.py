"""The folder that a model is saved in: whole, refused, or told what is wrong in it."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf import load_model, quantize_model, save_model
from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.save import check_scheme_savable
from llama_perf.checkpoints.tokenizers.tokenizer import find_tokenizer, load_tokenizer
from llama_perf.cli.main import main
from llama_perf.errors import SaveError, SpecError, TokenizerError, WeightsError
from tests.correctness.checkpoints.test_save import (
    CPU,
    assert_same,
    change_said,
    quantized,
)
from tests.correctness.quantize.test_apply import SMALL, small
from tests.correctness.support.command_line import refusal
from tests.correctness.support.tokenizer_samples import (
    SPECIAL,
    TOKENS,
    train_sentencepiece,
    write_gguf,
)
from tests.correctness.support.tokenizer_samples import (
    write_tiktoken as write_tiktoken_file,
)
from tests.correctness.support.weights_samples import tiny_weights


@pytest.mark.parametrize("how", ["gguf", "tiktoken", "sentencepiece"])
def test_the_tokenizer_comes_along(how: str, tmp_path: Path) -> None:
    config = replace(SMALL, vocab_size=600)
    model = quantize_model(
        build_model(tiny_weights(config), dtype=torch.float32, device=CPU), "int8wo"
    )
    source = tmp_path / "source"
    source.mkdir()
    if how == "gguf":
        path = write_gguf(
            source / "m.gguf",
            chat_template="{{ messages }}",
            add_bos_token=True,
            bos_token_id=273,
        )
    elif how == "tiktoken":
        path = write_tiktoken_file(source / "tokenizer.model", TOKENS)
    else:
        path = train_sentencepiece(source)
    folder = save_model(model, tmp_path / "saved", tokenizer=source)
    copied = find_tokenizer(folder)
    assert copied is not None
    assert copied.parent == folder
    found, wanted = load_tokenizer(copied), load_tokenizer(path)
    text = f"Hello, the user 123 {SPECIAL[0]}\n\nusing it"
    assert found.encode(text) == wanted.encode(text)
    for field in ("vocab_size", "bos_id", "eos_ids", "chat_template"):
        assert getattr(found, field) == getattr(wanted, field), field
    assert_same(load_model(folder), model)
    # The tokenizer's file itself will do as well.
    save_model(model, tmp_path / "again", tokenizer=path)
    assert find_tokenizer(tmp_path / "again") is not None


def test_a_tokenizer_that_is_not_the_models_is_refused(tmp_path: Path) -> None:
    model = quantized("int8wo", config=replace(SMALL, vocab_size=128))
    path = write_gguf(tmp_path / "m.gguf")
    with pytest.raises(TokenizerError, match="275 tokens is not allowed for a model"):
        save_model(model, tmp_path / "saved", tokenizer=path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TokenizerError, match="no tokenizer in this checkpoint"):
        save_model(model, tmp_path / "saved", tokenizer=tmp_path / "empty")
    assert not (tmp_path / "saved").exists()


def test_a_folder_with_something_in_it_is_not_written_over(tmp_path: Path) -> None:
    model, folder = small(), tmp_path / "saved"
    folder.mkdir()
    save_model(model, folder)
    before = (folder / "model.pth").stat()
    refusals = {
        folder: "it is there already and not empty",
        folder / "model.pth": "it is a file; give a folder",
        tmp_path / "none" / "saved": "the folder it lies in does not exist",
        Path("/proc/saved"): "/proc cannot be written: ",
    }
    for path, reason in refusals.items():
        with pytest.raises(SpecError) as caught:
            save_model(model, path)
        message = f"folder: {str(path)!r} is not allowed; {reason}"
        assert str(caught.value).startswith(message)
    assert (folder / "model.pth").stat() == before


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_what_fails_halfway_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantized("int8wo")
    with monkeypatch.context() as patch:
        patch.setattr("llama_perf.checkpoints.save.to_hugging_face", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_model(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(SaveError) as caught:
            save_model(model, tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value).startswith(f"{tmp_path / 'saved'}: cannot be written: ")
    assert os.strerror(errno.EFBIG) in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert_same(load_model(save_model(model, tmp_path / "saved")), model)


def test_a_tensor_that_cannot_be_saved_is_told_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantized("int8wo", "torchao")
    monkeypatch.setattr(type(model.output.weight.data), "__reduce_ex__", unpicklable)
    message = "Int8Tensor tensors cannot be saved: cannot pickle it"
    with pytest.raises(SaveError, match=message):
        save_model(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["int8wo", "int8dq", "int4wo-128", "float8wo"])
def test_torchaos_tensors_can_be_saved(scheme: str) -> None:
    check_scheme_savable(scheme, kernels="torchao", device=CPU, dtype=torch.bfloat16)


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


TINY = (
    *("generate", "--checkpoint_path", "stories15M", "--device", "cpu"),
    *("--precision", "float32", "--num_samples", "1", "--max_new_tokens", "3"),
    *("--temperature", "0", "-q", "int8wo"),
)


def tokens(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("[")]


@pytest.mark.parametrize("kernels", ["native", "torchao"])
def test_generate_saves_what_it_measured_and_goes_on_from_it(
    kernels: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    # What is compiled for measuring is saved as it was before.
    compiled = ["--compile"] if kernels == "native" else []
    assert main([*TINY, "--kernels", kernels, "--save", *compiled]) == 0
    name = f"stories15M-int8wo-{kernels}"
    first = capsys.readouterr().out
    assert first.endswith(f"saved: {tmp_path / name}\n")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    words = ("--checkpoint_path", name, "--write_result", "results.txt")
    assert main([*TINY[:-2], *words]) == 0
    second = capsys.readouterr().out
    assert f"weights: pth:{name} (int8wo, {kernels}, from synthetic); " in second
    assert tokens(second) == tokens(first)
    line = (tmp_path / "results.txt").read_text(encoding="utf-8")
    assert f" quant: int8wo, mod: {name}, kv_quant: " in line
    # The scheme came with the checkpoint.
    assert "quantization" not in line.partition(" repro: ")[2]

    message = refusal(capsys, *TINY, "--kernels", kernels, "--save")
    assert message.startswith(f"save: '{name}' is not allowed; it is there already and")
    message = refusal(capsys, *TINY, "--checkpoint_path", name)
    assert message.startswith(
        "quantization: 'int8wo' is not allowed; this model is quan"
    )
    message = refusal(capsys, *TINY[:-2], "--checkpoint_path", name, "--save")
    assert message.endswith("it saves a quantized model: give --quantization")


def test_a_saved_model_speaks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(SMALL, vocab_size=300)
    model = build_model(tiny_weights(config), dtype=torch.float32, device=CPU)
    save_model(model, "mine", tokenizer=write_gguf(tmp_path / "vocabulary.gguf"))
    words = ("--checkpoint_path", "mine/model.pth", "--prompt", "Hello the user")
    assert main([*TINY, *words, "--save"]) == 0
    first = capsys.readouterr().out
    words = ("--checkpoint_path", "mine-int8wo-native", *words[2:])
    assert main([*TINY[:-2], *words]) == 0
    second = capsys.readouterr().out
    texts = [output.partition("\nHello the user")[2] for output in (first, second)]
    lines = [text.partition("\nTime for inference")[0] for text in texts]
    assert lines[0] == lines[1] != ""


def test_what_cannot_be_saved_is_told_before_anything_is_built(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def started(*_: object, **__: object) -> None:
        pytest.fail("it started before it refused")

    monkeypatch.setattr("llama_perf.measure.prepare.prepare", started)
    message = refusal(capsys, *TINY, "--save", "--interactive")
    assert message == "save: True is not allowed; not with --interactive"
    monkeypatch.chdir("/proc")
    message = refusal(capsys, *TINY, "--save")
    assert message.startswith(
        "save: 'stories15M-int8wo-native' is not allowed; /proc ca"
    )
    monkeypatch.chdir(tmp_path)
    kind = type(quantized("int8wo", "torchao").output.weight.data)
    monkeypatch.setattr(kind, "__reduce_ex__", unpicklable)
    message = refusal(capsys, *TINY, "--kernels", "torchao", "--save")
    assert message == (
        "scheme int8wo on torchao kernels: Int8Tensor tensors cannot be saved:"
        " cannot pickle it"
    )
    assert list(tmp_path.iterdir()) == []


def unpicklable(*_: object) -> None:
    raise TypeError("cannot pickle it")

"""The folder that a model is saved in: whole, refused, or told what is wrong in it."""

from __future__ import annotations

import errno
import os
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
from llama_perf.errors import SaveError, SpecError, TokenizerError
from tests.correctness.checkpoints.test_save import CPU, assert_same, quantized
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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

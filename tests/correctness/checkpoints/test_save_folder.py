"""The folder that a model is saved in: whole, refused, or told what is wrong in it."""

import errno
import os
import pickle
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from llama_perf import load_model, save_model
from llama_perf.checkpoints.config import to_hugging_face
from llama_perf.checkpoints.saved import SAVED_KERNELS
from llama_perf.checkpoints.tokenizers.chat import Message, encode_chat
from llama_perf.checkpoints.tokenizers.files import find_tokenizer, load_tokenizer
from llama_perf.errors import SaveError, TokenizerError
from tests.correctness.checkpoints.test_pth import Evil
from tests.correctness.checkpoints.test_save import assert_same, change_said, quantized
from tests.correctness.quantize.test_apply import SMALL, small
from tests.correctness.support import tokenizer_samples as samples
from tests.correctness.support import weights_samples
from tests.correctness.support.command_line import TINY, CommandLine
from tests.correctness.support.errors import refusal
from tests.correctness.support.hugging_face_samples import write_folder, write_json

BOS: Any = {"add_bos_token": True, "bos_token_id": 273}


def _json(folder: Path) -> Path:
    path = write_folder(folder, "qwen2")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}<|im_end|>")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    write_json(folder / "generation_config.json", {"eos_token_id": [3, 402]})
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "gguf": lambda folder: samples.write_gguf(
        folder / "m.gguf", chat_template="{{ messages }}", **BOS
    ),
    "tiktoken": lambda folder: samples.write_tiktoken(folder / "tokenizer.model"),
    "sentencepiece": samples.train_sentencepiece,
    "json": _json,
}


@pytest.mark.parametrize("how", WRITERS)
def test_the_tokenizer_comes_along(how: str, tmp_path: Path) -> None:
    model = quantized("int8wo", config=replace(SMALL, vocab_size=600))
    (tmp_path / "source").mkdir()
    path = WRITERS[how](tmp_path / "source")
    folder = save_model(model, tmp_path / "saved", tokenizer=path.parent)
    copied = find_tokenizer(folder)
    assert copied is not None
    assert copied.parent == folder
    loaded, wanted = load_tokenizer(copied), load_tokenizer(path)
    text = f"Hello, the user 123 {samples.SPECIAL[0]}\n\nusing it"
    assert loaded.encode(text) == wanted.encode(text)
    for field in ("vocab_size", "bos_id", "eos_ids", "special", "added"):
        assert getattr(loaded, field) == getattr(wanted, field), field
    talk = [Message("user", "Hello")]
    if wanted.chat_template is not None:
        assert encode_chat(loaded, talk) == encode_chat(wanted, talk)
    assert_same(load_model(folder), model)
    # The tokenizer's file itself will do as well.
    save_model(model, tmp_path / "again", tokenizer=path)
    assert find_tokenizer(tmp_path / "again") is not None


def test_a_tokenizer_that_is_not_the_models_is_refused(tmp_path: Path) -> None:
    model = quantized("int8wo", config=replace(SMALL, vocab_size=128))
    path = samples.write_gguf(tmp_path / "m.gguf")
    (tmp_path / "empty").mkdir()
    for tokenizer, reason in {
        path: "275 tokens is not allowed for a model",
        tmp_path / "empty": "no tokenizer in this checkpoint",
    }.items():
        with pytest.raises(TokenizerError, match=reason):
            save_model(model, tmp_path / "saved", tokenizer=tokenizer)
    assert not (tmp_path / "saved").exists()


def test_a_folder_with_something_in_it_is_not_written_over(tmp_path: Path) -> None:
    model, folder = small(), tmp_path / "saved"
    folder.mkdir()
    save_model(model, folder)
    before = (folder / "model.pth").stat()
    for path, reason in {
        folder: "it is there already and not empty",
        folder / "model.pth": "it is a file; give a folder",
        tmp_path / "none" / "saved": "the folder it lies in does not exist",
        Path("/proc/saved"): "/proc cannot be written: ",
    }.items():
        message = f"folder: {str(path)!r} is not allowed; {reason}"
        assert refusal(save_model, model, path).startswith(message)
    assert (folder / "model.pth").stat() == before


def test_what_fails_halfway_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantized("int8wo")
    with monkeypatch.context() as patch:
        interrupted = Mock(side_effect=KeyboardInterrupt)
        patch.setattr("llama_perf.checkpoints.save.to_hugging_face", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_model(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        message = refusal(save_model, model, tmp_path / "saved", error=SaveError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.startswith(f"{tmp_path / 'saved'}: cannot be written: ")
    assert os.strerror(errno.EFBIG) in message
    assert list(tmp_path.iterdir()) == []
    assert_same(load_model(save_model(model, tmp_path / "saved")), model)


UNQUANTIZED = (*TINY, "--temperature", "0")
QUANTIZED = (*UNQUANTIZED, "-q", "int8wo")


def tokens(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("[")]


@pytest.mark.parametrize("kernels", SAVED_KERNELS)
def test_generate_saves_what_it_measured_and_goes_on_from_it(
    kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    monkeypatch.chdir(tmp_path)
    # What is compiled for measuring is saved as it was before.
    compiled = ["--compile"] if kernels == "native" else []
    first, _ = cli(*QUANTIZED, "--kernels", kernels, "--save", *compiled)
    name = f"stories15M-int8wo-{kernels}"
    assert first.endswith(f"saved: {tmp_path / name}\n")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    words = ("--checkpoint_path", name, "--write_result", "results.txt")
    second, _ = cli(*UNQUANTIZED, *words)
    assert f"weights: pth:{name} (int8wo, {kernels}, from synthetic); " in second
    assert tokens(second) == tokens(first)
    line = (tmp_path / "results.txt").read_text(encoding="utf-8")
    assert f" quant: int8wo, mod: {name}, kv_quant: " in line
    # The scheme came with the checkpoint.
    assert "quantization" not in line.partition(" repro: ")[2]

    message = cli.refusal(*QUANTIZED, "--kernels", kernels, "--save")
    assert message.startswith(f"save: '{name}' is not allowed; it is there already and")
    message = cli.refusal(*UNQUANTIZED, "--checkpoint_path", name, "--save")
    assert message.endswith("it saves a quantized model: give --quantization")


def test_a_saved_model_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    monkeypatch.chdir(tmp_path)
    model = small(replace(SMALL, vocab_size=300))
    save_model(model, "mine", tokenizer=samples.write_gguf(tmp_path / "words.gguf"))
    texts = []
    for words in (
        (*QUANTIZED, "--save", "--checkpoint_path", "mine/model.pth"),
        (*UNQUANTIZED, "--checkpoint_path", "mine-int8wo-native"),
    ):
        output, _ = cli(*words, "--prompt", "Hello the user")
        text = output.partition("\nHello the user")[2]
        texts.append(text.partition("\nTime for inference")[0])
    assert texts[0] == texts[1] != ""


def test_what_cannot_be_saved_is_told_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    started = Mock(side_effect=AssertionError("it started before it refused"))
    monkeypatch.setattr("llama_perf.cli.generate_run.prepare_row", started)
    words = ("--num_samples", "5", "--save", "--interactive")
    message = cli.refusal(*QUANTIZED, *words)
    assert message == "save: not with --interactive, which does not use it"
    monkeypatch.chdir("/proc")
    message = cli.refusal(*QUANTIZED, "--save")
    start = "save: 'stories15M-int8wo-native' is not allowed; /proc cannot be written"
    assert message.startswith(start)
    monkeypatch.chdir(tmp_path)

    model = quantized("int8wo", "torchao")
    kind = type(model.output.weight.data)
    unpicklable = Mock(side_effect=TypeError("cannot pickle it"))
    monkeypatch.setattr(kind, "__reduce_ex__", unpicklable)
    reason = "Int8Tensor tensors cannot be saved: cannot pickle it"
    message = cli.refusal(*QUANTIZED, "--kernels", "torchao", "--save")
    assert message == f"scheme int8wo on torchao kernels: {reason}"
    with pytest.raises(SaveError, match=reason):
        save_model(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(quantized("int8wo"), tmp_path / "saved")


def refused(folder: Path, start: str) -> None:
    assert weights_samples.file_refusal(folder, load_model).startswith(start)


OTHER_FORMAT = (
    "is not allowed; allowed: 5; quantize and save the model again with this llama-perf"
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "int3wo"}, "scheme: 'int3wo' is not allowed; did you mean int8wo"),
        ({"scheme": 8}, "scheme: 8 is not allowed; allowed: text"),
        ({"kernels": "fast"}, "kernels: 'fast' is not allowed; allowed: native, tor"),
        ({"kernels": None}, "kernels: none is not allowed; allowed: native, torchao"),
        ({"scheme": None}, "kernels: 'native' is not allowed; allowed: none"),
        ({"dtype": "int8"}, "dtype: 'int8' is not allowed; allowed: float32, float16"),
        ({"device": "tpu"}, "device: 'tpu' is not allowed; allowed: cuda, cpu"),
        ({"format": "5"}, "format: '5' is not allowed; allowed: 5"),
        ({"format": 4, "bits": 4}, f"format 4 {OTHER_FORMAT}"),
        ({"format": 6, "bits": 4}, f"format 6 {OTHER_FORMAT}"),
        ({"bits": 4}, "bits: unknown field"),
    ],
)
def test_what_a_folder_says_of_itself_is_checked(
    changes: dict[str, object], message: str, folder: Path
) -> None:
    change_said(folder, **changes)
    refused(folder, f"config.json: llama_perf: {message}")


def test_tensors_that_are_not_what_the_folder_says(folder: Path) -> None:
    path = folder / "model.pth"
    change_said(folder, kernels="torchao")
    refused(
        folder,
        "model.pth: layers.0.attention.wqkv.weight: a tensor of native kernels is not"
        " allowed; config.json says torchao",
    )
    change_said(folder, kernels="native")
    state = torch.load(path, weights_only=True)
    torch.save({**state, "tok_embeddings.weight": state["output.weight"]}, path)
    refused(folder, "model.pth: tok_embeddings.weight: Int8Weight is not allowed; ")
    torch.save({**state, "norm.weight": Evil(folder / "ran")}, path)
    refused(folder, "model.pth: refused: it asks for posix.system, which can run code")
    assert not (folder / "ran").exists()
    torch.save(small().state_dict(), path)
    refused(folder, "model.pth: no tensor is quantized; config.json says int8wo")
    torch.save(state, path)
    weights_samples.write_json(folder / "config.json", to_hugging_face(SMALL))
    refused(folder, "model.pth: layers.0.attention.wqkv.weight: Int8Weight is")


def test_a_tensor_of_other_versions_is_told_with_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = "Unsupported global: GLOBAL torchao.quantization.Old was not an allowed"
    load = Mock(side_effect=pickle.UnpicklingError(asked))
    monkeypatch.setattr(torch, "load", load)
    start = "model.pth: refused: it asks for torchao.quantization.Old,"
    versions = "which these versions do not have; it was saved with torchao 0."
    refused(folder, f"{start} {versions}")
    change_said(folder, scheme=None, kernels=None)
    refused(folder, f"{start} a quantized tensor; allowed: unquantized tensors")

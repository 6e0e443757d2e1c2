"""Mistakes on the command line: one line that names them, exit code 2, nothing run."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scripts.doc_tables.smollm2 import smollm2_path
from tests.correctness.support.command_line import refusal
from tests.correctness.support.tokenizer_samples import train_sentencepiece
from tests.correctness.support.weights_samples import (
    CONFIG_JSON,
    all_weights,
    tiny_weights,
    write_json,
)
from tests.correctness.support.weights_samples import TINY as TINY_CONFIG

TINY = (
    *("--checkpoint_path", "stories15M", "--device", "cpu", "--precision", "float32"),
    *("--num_samples", "1", "--max_new_tokens", "3"),
)


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        pytest.fail("it started before it refused")

    monkeypatch.setattr("llama_perf.measure.prepare.prepare", started)
    monkeypatch.setattr("llama_perf.run.session.prepare", started)
    monkeypatch.setattr("llama_perf.run.session.measure_ceiling", started)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--precision fp32", "precision: 'fp32' is not allowed; allowed: float32, fl"),
        ("--device gpu", "device: 'gpu' is not allowed; allowed: cuda, cpu"),
        ("--kernels mine", "kernels: 'mine' is not allowed; allowed: native, torchao"),
        ("-q int4wo-63", "quantization: 'int4wo-63' is not allowed; the group size"),
        ("-q int5wo", "quantization: 'int5wo' is not allowed; allowed: int8wo, int8dq"),
        ("--cache_size 0", "cache_size: 0 is not allowed; the row needs 4 positions"),
        ("--cache_size -5", "cache_size: -5 is not allowed; the row needs 4 positions"),
        ("--prefill_size 20 --cache_size 10", "cache_size: 10 is not allowed; the row"),
        ("--fill 9 --cache_size 12", "cache_size: 12 is not allowed; the row needs 13"),
        ("--fill -1", "fill: -1 is not allowed; allowed: 0 or more"),
        ("--prefill_chunk 0", "prefill_chunk: 0 is not allowed; allowed: 1 or more"),
        ("--attention flash", "attention: 'flash' is not allowed; allowed: decode, sd"),
        (
            "--kv_cache_quantization int4",
            "kv_cache_quantization: 'int4' is not allowed; allowed: false, true (int8)",
        ),
        ("--prefill_size 0", "prefill_size: 0 is not allowed; allowed: 1 or more"),
        ("--num_samples 0", "num_samples: 0 is not allowed; allowed: 1 or more"),
        ("--max_new_tokens -1", "max_new_tokens: -1 is not allowed; allowed: 1 or mo"),
        ("--batch_size 0", "batch_size: 0 is not allowed; allowed: 1 or more"),
        ("--top_k 0", "top_k: 0 is not allowed; allowed: 1 or more"),
        ("--temperature -0.5", "temperature: -0.5 is not allowed; allowed: 0 (greedy)"),
        ("--temperature nan", "temperature: nan is not allowed; allowed: 0 (greedy)"),
        ("--memory_profile here", "memory_profile: 'here' is not allowed; it needs CU"),
        ("--num_samples many", "argument --num_samples: invalid int value: 'many'"),
        ("--colour red", "unrecognized arguments: --colour red"),
        (
            "--save",
            "save: True is not allowed; it saves a quantized model: give --quan",
        ),
    ],
)
def test_a_wrong_option_of_generate(
    capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert refusal(capsys, "generate", *TINY, *words.split()).startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--checkpoint_path Foo-17B", "model: 'Foo-17B' is not allowed; allowed: the"),
        ("--checkpoint_path no/folder", "checkpoint: 'no/folder': no such file or fol"),
        ("--checkpoint_path model.pth", "checkpoint: 'model.pth': no such file or fol"),
        ("-q fp6 --kernels torchao", "scheme fp6 is not built on torchao; built on: n"),
        ("--cache_size 1000000000000", "needs 13824000.1 GB (KV cache 13824000.0 GB"),
    ],
)
def test_what_cannot_be_built(
    capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert refusal(capsys, "generate", *TINY, *words.split()).startswith(message)


def test_the_default_checkpoint_that_is_not_there_says_what_to_give(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = refusal(capsys, "generate", "--device", "cpu")
    assert "Llama-2-7b-chat-hf/model.pth' is not allowed; no such file" in message
    assert "a preset's name" in message


def test_a_card_that_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refusal(capsys, "generate", "--checkpoint_path", "7B")
    assert message.startswith("no CUDA device on this machine")


def test_a_folder_without_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, "generate", *TINY, "--checkpoint_path", str(tmp_path))
    assert message.startswith(f"{tmp_path}: no weights in this folder; allowed: a .pth")


def test_truncated_safetensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    write_json(tmp_path / "config.json", CONFIG_JSON)
    save_file(all_weights(tiny_weights()), path)
    path.write_bytes(path.read_bytes()[:-1000])
    message = refusal(capsys, "generate", *TINY, "--checkpoint_path", str(tmp_path))
    assert message.startswith(f"{path}: damaged or truncated")


class _Code:
    """What a pickle runs when it is loaded without care."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._folder),)


def test_a_pickle_that_wants_to_run_code_runs_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, trace = tmp_path / "model.pth", tmp_path / "ran"
    write_json(tmp_path / "config.json", CONFIG_JSON)
    torch.save({"tok_embeddings.weight": _Code(trace)}, path)
    message = refusal(capsys, "generate", *TINY, "--checkpoint_path", str(path))
    assert message.startswith(
        f"{path}: refused: it asks for posix.mkdir, which can run"
    )
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the sample is harmless, so it proves nothing"


def test_a_tokenizer_of_another_vocabulary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The model knows every id of a text, so that only the sizes differ.
    config = replace(TINY_CONFIG, vocab_size=2000)
    write_json(tmp_path / "config.json", CONFIG_JSON | {"vocab_size": 2000})
    torch.save(all_weights(tiny_weights(config)), tmp_path / "model.pth")
    tokenizer = train_sentencepiece(tmp_path)
    words = ("--checkpoint_path", str(tmp_path))
    message = refusal(capsys, "generate", *TINY, *words)
    assert message.startswith(f"{tokenizer}: a tokenizer of 360 tokens is not allowed")
    assert message.endswith("allowed: 977 to 2000 tokens")


@pytest.mark.usefixtures("nothing_runs")
def test_a_text_longer_than_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--checkpoint_path", str(smollm2_path()), "--cache_size", "20")
    message = refusal(capsys, "generate", *TINY, *words, "--prompt", "one " * 40)
    assert message.startswith("cache_size: 20 is not allowed; the row needs ")
    assert "+ 3 new tokens" in message


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[row]]\nmodle = "7B"', "row 1: modle: unknown field"),
        ('[[row]]\nmodel = "7B"\nfill = "1"', "row 1: fill: Input should be a valid"),
        ('[[row]]\nmodel = "7B"\ndtype = "bf16"', "row 1: dtype: 'bf16' is not allow"),
        ('[[row]]\nmodel = "7B"\ncache_size = 5', "row 1: cache_size: 5 is not allow"),
        ('[[row]]\nmodel = "7B"\n' * 2, "rows 1 and 2 have one id, '7b.none.bf16.eag"),
        ("[[row]\n", "not TOML: "),
        ("", "it has no rows; write them as [[row]] tables"),
        ('[[rows]]\nmodel = "7B"', "rows: unknown table; allowed: [defaults], [[row]]"),
    ],
)
@pytest.mark.parametrize("command", ["run", "rows", "baseline record"])
def test_a_wrong_file_of_rows(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    text: str,
    message: str,
) -> None:
    path = tmp_path / "rows.toml"
    path.write_text(text, encoding="utf-8")
    words = (*command.split(), "--rows", str(path))
    assert refusal(capsys, *words).startswith(f"{path}: {message}")


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("command", ["run", "rows", "baseline record"])
def test_rows_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    words = command.split()
    message = refusal(capsys, *words, "--rows", str(tmp_path / "none.toml"))
    assert message.endswith("none.toml' cannot be read: No such file or directory")
    assert "Is a directory" in refusal(capsys, *words, "--rows", str(tmp_path))
    message = refusal(capsys, *words, "--set", "all")
    allowed = "batch, cpu, cpu-long, cuda, cuda-check, filled, prefill, published,"
    allowed += " reference, torchao, unfused"
    assert message == f"set: 'all' is not allowed; allowed: {allowed}"
    message = refusal(capsys, *words, "--set", "cpu", "--row", "*int3*")
    assert message.startswith("row: '*int3*' is not allowed; no id matches")
    message = refusal(capsys, *words, "--set", "cpu", "--rows", "rows.toml")
    assert message == "rows: 'rows.toml' is not allowed; give --rows or --set, not both"


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("generate", *TINY, "--write_result"), "write_result"),
        (("generate", *TINY, "--profile"), "profile"),
        (("run", "--set", "cpu", "--results"), "results"),
        (("run", "--set", "cpu", "--json"), "results"),
        (("run", "--set", "cpu", "--markdown"), "markdown"),
    ],
)
def test_a_file_that_cannot_be_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    field: str,
) -> None:
    reasons = {
        tmp_path / "none" / "file": "its folder does not exist",
        tmp_path: "it is a folder; give a file",
        # A folder where not even root can write.
        Path("/proc/file"): "/proc cannot be written: ",
    }
    for path, reason in reasons.items():
        message = refusal(capsys, *words, str(path))
        assert message.startswith(f"{field}: {str(path)!r} is not allowed; {reason}")


@pytest.mark.usefixtures("nothing_runs")
def test_a_folder_of_baselines_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "baselines", "/proc/new"):
        words = ("--set", "cpu", "--baselines", str(folder))
        message = refusal(capsys, "baseline", "record", *words)
        assert message.startswith(f"baselines: {str(folder)!r} is not allowed; /")
        assert " cannot be written: " in message


@pytest.mark.parametrize("words", ["", "baseline", "teach", "baseline forget"])
def test_a_command_that_is_none(capsys: pytest.CaptureFixture[str], words: str) -> None:
    message = refusal(capsys, *words.split())
    assert "are required" in message or "invalid choice" in message

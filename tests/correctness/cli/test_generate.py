"""`llama-perf generate`: the reference's flags, its texts and its result line."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf.cli import generate
from llama_perf.cli.generate_flags import repeating_command
from llama_perf.cli.generate_output import result_line
from llama_perf.cli.main import main
from llama_perf.measure import prepare as build
from llama_perf.measure.prepare import Prepared
from llama_perf.measure.timing import Sample
from scripts.doc_tables.smollm2 import smollm2_path
from tests.correctness.support.processes import HANG_S
from tests.correctness.support.record_samples import MEASUREMENT
from tests.correctness.support.weights_samples import (
    CONFIG_JSON,
    all_weights,
    tiny_weights,
    write_json,
)

ROOT = Path(__file__).resolve().parents[3]
TINY = (
    *("generate", "--checkpoint_path", "stories15M", "--device", "cpu"),
    *("--precision", "float32", "--num_samples", "1", "--max_new_tokens", "3"),
)
LINE = re.compile(
    r"(?P<date>\d{14}), tok/s= *(?P<speed>\d+\.\d\d), mem/s= *(?P<read>\d+\.\d\d) GB/s,"
    r" peak_mem= *(?P<peak>\d+\.\d\d) GB, model_size= *(?P<size>\d+\.\d\d) GB"
    r" quant: (?P<quant>\S+), mod: (?P<mod>\S+), kv_quant: (?P<kv>True|False),"
    r" compile: (?P<compile>True|False), compile_prefill: (?P<prefill>True|False),"
    r" dtype: (?P<dtype>torch\.\w+), device: (?P<device>cuda|cpu) repro: (?P<repro>.+)"
)
DIFFERS_FROM_RUN_TO_RUN = {"date", "speed", "read", "peak"}


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return parser.parse_args(words)


def fields(line: str) -> dict[str, str]:
    match = LINE.fullmatch(line)
    assert match is not None, line
    return match.groupdict()


def token_lists(text: str) -> list[list[int]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("[")]


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Prepared]:
    """What `generate` prepares, as it is prepared."""
    made: list[Prepared] = []

    def prepare(*arguments: Any, **options: Any) -> Prepared:
        made.append(original(*arguments, **options))
        return made[-1]

    original = build.prepare
    monkeypatch.setattr(build, "prepare", prepare)
    return made


def test_flags_and_defaults_are_the_references() -> None:
    assert vars(parsed()) == {
        "prefill_size": None,
        "prompt": "Hello, my name is",
        "interactive": False,
        "num_samples": 5,
        "max_new_tokens": 200,
        "batch_size": 1,
        "top_k": 200,
        "temperature": 0.8,
        "checkpoint_path": "checkpoints/meta-llama/Llama-2-7b-chat-hf/model.pth",
        "quantization": None,
        "kernels": None,  # not the reference's: there was one kind
        "kv_cache_quantization": False,
        "cache_size": None,
        "linear_causal_mask": False,
        # Nor are these three: it had one path, and filled nothing before timing.
        "attention": "decode",
        "prefill_chunk": None,
        "fill": 0,
        "save": False,
        "compile": False,
        "compile_prefill": False,
        "profile": None,
        "memory_profile": None,
        "device": "cuda",
        "precision": "bfloat16",
        "write_result": None,
    }
    assert parsed("-q", "int8wo").quantization == "int8wo"


@pytest.mark.parametrize(
    ("words", "attention", "kv_cache"),
    [
        ("", "decode", None),
        ("--linear_causal_mask", "decode", None),
        ("--linear_causal_mask --attention sdpa", "sdpa", None),
        ("--attention sdpa", "sdpa", None),
        ("--kv_cache_quantization", "decode", "int8"),
        ("--kv_cache_quantization int8 --device cpu", "decode", "int8"),
        ("--kv_cache_quantization fp8", "decode", "fp8"),
    ],
)
def test_the_flags_of_the_cache(
    words: str, attention: str, kv_cache: str | None
) -> None:
    row = generate.row_of(parsed(*words.split()), prompt_length=6)
    assert (row.attention, row.kv_cache) == (attention, kv_cache)


def test_the_result_line_is_the_references() -> None:
    measurement = replace(
        MEASUREMENT, peak_memory_bytes=13_880_000_000, model_size_bytes=13_214_100_000
    )
    times = [200e9 / 107, 200e9 / 107.76]
    samples = [
        Sample(total_ns=round(time), first_token_ns=1, tokens=torch.tensor([[0]]))
        for time in times
    ]

    def line(*words: str) -> str:
        return result_line(
            generate.row_of(parsed(*words), prompt_length=1),
            measurement,
            samples,
            quantization=None,
            command=repeating_command(parsed(*words)),
        )

    assert line("--compile")[14:] == (
        ", tok/s=107.38, mem/s=1418.93 GB/s, peak_mem=13.88 GB, model_size=13.21 GB"
        " quant: None, mod: Llama-2-7b-chat-hf, kv_quant: False, compile: True,"
        " compile_prefill: False, dtype: torch.bfloat16, device: cuda"
        " repro: python -m llama_perf generate --compile"
    )
    batch = fields(line("--batch_size", "4"))
    # All tokens of the batch; the weights are read once for a token of each sequence.
    assert (batch["speed"], batch["read"]) == ("429.52", "1418.93")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--prompt", 'He said: "it\'s $HOME"\n', "--temperature", "0.5"],
        ["--prompt=--compile", "--top_k", "7", "--num_samples", "3"],
        ["-q", "int4wo-64-hqq", "--kernels", "torchao", "--compile_prefill"],
        ["--prefill_size", "9", "--batch_size", "2", "--cache_size", "300"],
        ["--linear_causal_mask", "--precision", "float16", "--device", "cpu"],
    ],
)
def test_the_repro_command_asks_for_the_same_work(words: list[str]) -> None:
    outputs = ["--write_result", "results.txt", "--profile", "trace.json"]
    command = shlex.split(repeating_command(parsed(*words, *outputs)))
    assert command[:4] == ["python", "-m", "llama_perf", "generate"]
    assert vars(parsed(*command[4:])) == vars(parsed(*words))


def test_a_result_line_repeats_itself_and_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "results.txt"
    asked = ["-q", "int8wo", "--prompt", "it's me", "--write_result", str(path)]
    assert main([*TINY, *asked]) == 0
    first = path.read_text(encoding="utf-8")
    assert first.count("\n") == 1
    values = fields(first.rstrip("\n"))
    assert (values["quant"], values["mod"]) == ("int8wo", "stories15M")
    assert (values["dtype"], values["device"]) == ("torch.float32", "cpu")

    python, *command = shlex.split(values["repro"])
    assert python == "python"
    subprocess.run(
        [sys.executable, *command, "--write_result", str(path)],
        cwd=ROOT,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        check=True,
        timeout=HANG_S,
    )
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert (len(lines), lines[0]) == (2, first)
    repeated = fields(lines[1].rstrip("\n"))
    for name in values.keys() - DIFFERS_FROM_RUN_TO_RUN:
        assert repeated[name] == values[name]


def test_a_preset_prints_its_tokens_and_the_references_averages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*TINY, "--num_samples", "2", "--precision", "torch.float32"]) == 0
    output = capsys.readouterr().out
    assert "(no tokenizer: a prompt of 6 random tokens)" in output
    assert "weights: synthetic" in output
    assert [len(tokens) for tokens in token_lists(output)] == [6 + 3, 6 + 3]
    for number in (1, 2):
        assert re.search(
            rf"^Time for inference {number}: \d+\.\d\d sec total, \d+\.\d\d tokens/sec,"
            r" time to first token \d+\.\d ms$",
            output,
            re.MULTILINE,
        )
    assert re.search(
        r"==========\nAverage tokens/sec: \d+\.\d\d\n"
        r"Average decode tokens/sec: \d+\.\d\d\nAverage Bandwidth: \d+\.\d\d GB/s\n"
        r"Peak Memory Usage: 0\.\d\d GB\nModel Size: 0\.06 GB\n$",
        output,
    )


def test_a_prefill_size_and_a_batch_are_what_is_run(
    prepared: list[Prepared], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "--prefill_size", "11", "--batch_size", "3"]) == 0
    (made,) = prepared
    assert made.prompt.shape == (3, 11)
    assert torch.equal(made.prompt, made.prompt[:1].expand(3, -1))
    # As in the reference, whose random prompts held ids below 1024.
    assert made.prompt.max() < 1024
    assert made.engine.options.batch_size == made.row.batch_size == 3
    output = capsys.readouterr().out
    assert token_lists(output)[0][:11] == made.prompt[0].tolist()
    assert "no tokenizer" not in output


def test_a_small_vocabulary_without_a_tokenizer_runs(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", CONFIG_JSON)
    torch.save(all_weights(tiny_weights()), tmp_path / "model.pth")
    assert main([*TINY, "--checkpoint_path", str(tmp_path)]) == 0


def test_a_profile_is_a_trace_of_operators(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.json"
    assert main([*TINY, "--profile", str(path)]) == 0
    assert f"wrote {path}" in capsys.readouterr().out
    trace = json.loads(path.read_text(encoding="utf-8"))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert "aten::linear" in names


def test_greedy_texts_are_the_same_and_hold_the_prompt(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ("--checkpoint_path", str(smollm2_path()), "--temperature", "0")
    prompt = "The capital of France is"
    assert main([*TINY, *asked, "--num_samples", "2", "--prompt", prompt]) == 0
    output = capsys.readouterr().out
    assert "weights: gguf:" in output
    first, second = re.findall(r"^The [^\n]+", output, re.MULTILINE)
    assert first == second
    assert first.startswith(f"{prompt} Paris")


def test_greedy_runs_repeat_and_drawn_samples_differ(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = []
    for _ in range(2):
        assert main([*TINY, "--temperature", "0"]) == 0
        runs.append(token_lists(capsys.readouterr().out))
    assert runs[0] == runs[1]
    assert main([*TINY, "--num_samples", "2"]) == 0
    one, other = token_lists(capsys.readouterr().out)
    assert one != other

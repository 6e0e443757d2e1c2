"""`llama-perf generate`: the reference's flags, texts, result line, conversations."""

import argparse
import io
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from llama_perf.checkpoints.tokenizers import chat, files
from llama_perf.cli import generate, generate_run
from llama_perf.llama.engine import Engine
from llama_perf.measure import timing
from llama_perf.measure.prepare import prepare_row
from llama_perf.measure.timing import Sample
from llama_perf.results.measurement import SystemLoad
from scripts.doc_tables.smollm2 import smollm2_path
from tests.correctness.support.command_line import TINY, CommandLine
from tests.correctness.support.plugin_project import write_tiny
from tests.correctness.support.record_samples import MEASUREMENT
from tests.correctness.support.tokenizer_samples import train_sentencepiece

Talk = Callable[..., tuple[str, str]]
ASK = "What is your prompt? "


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return parser.parse_args(words)


def without_speeds(line: str) -> str:
    """A result line without what differs from run to run: date, speeds, peak."""
    return re.sub(r"^\d{14}|(?<=[mk]/s=)[ \d.]+|(?<=_mem=)[ \d.]+", "", line)


def token_lists(text: str) -> list[list[int]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("[")]


def test_flags_and_defaults_are_the_references() -> None:
    switches = "interactive linear_causal_mask save compile compile_prefill"
    without = "prefill_size quantization cache_size profile memory_profile write_result"
    # Not the reference's: it had one kind of kernels and one path, quantized every
    # linear, filled nothing before timing, and wrote no report.
    own = {"kernels": None, "attention": "decode", "prefill_chunk": None, "fill": 0}
    own |= {"modules": None}
    assert vars(parsed()) == own | {
        "report": [],
        **dict.fromkeys(switches.split(), False),
        **dict.fromkeys(without.split()),
        "kv_cache_quantization": False,
        "prompt": None,
        "num_samples": 5,
        "max_new_tokens": 200,
        "batch_size": 1,
        "top_k": 200,
        "temperature": 0.8,
        "checkpoint_path": "checkpoints/meta-llama/Llama-2-7b-chat-hf/model.pth",
        "device": "cuda",
        "precision": "bfloat16",
    }
    assert parsed("-q", "int8wo").quantization == "int8wo"
    # Where the model has a tokenizer.
    assert generate.PROMPT == "Hello, my name is"


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
def test_the_cache_flags(words: str, attention: str, kv_cache: str | None) -> None:
    row = generate.row_of(parsed(*words.split()))
    assert (row.attention, row.kv_cache) == (attention, kv_cache)


def test_a_flag_fills_the_field_of_its_name() -> None:
    flags = {"batch_size": 2, "top_k": 7, "temperature": 0.5, "num_samples": 3}
    flags |= {"max_new_tokens": 9, "cache_size": 300, "fill": 4, "prefill_chunk": 8}
    words = [f"--{name}={value}" for name, value in flags.items()]
    row = generate.row_of(parsed(*words))
    assert {name: getattr(row, name) for name in flags} == flags


def test_the_result_line_is_the_references() -> None:
    measurement = replace(
        MEASUREMENT, peak_memory_bytes=13_880_000_000, model_size_bytes=13_214_100_000
    )
    samples = [
        Sample(total_ns=round(time), first_token_ns=1, tokens=torch.tensor([[0]]))
        for time in (200e9 / 107, 200e9 / 107.76)
    ]

    def line(*words: str) -> str:
        return generate_run.result_line(
            generate.row_of(parsed(*words)),
            measurement,
            samples,
            quantization=None,
            command=generate.repeating_command(parsed(*words)),
        )

    assert line("--compile")[14:] == (
        ", tok/s=107.38, mem/s=1418.93 GB/s, peak_mem=13.88 GB, model_size=13.21 GB"
        " quant: None, mod: Llama-2-7b-chat-hf, kv_quant: False, compile: True,"
        " compile_prefill: False, dtype: torch.bfloat16, device: cuda"
        " repro: python -m llama_perf generate --compile"
    )
    # All tokens of the batch; the weights are read once for a token of each sequence.
    assert ", tok/s=429.52, mem/s=1418.93 GB/s," in line("--batch_size", "4")


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
    command = shlex.split(generate.repeating_command(parsed(*words, *outputs)))
    assert command[:4] == ["python", "-m", "llama_perf", "generate"]
    assert vars(parsed(*command[4:])) == vars(parsed(*words))


def test_a_result_line_repeats_and_is_added(tmp_path: Path, cli: CommandLine) -> None:
    path, model = tmp_path / "results.txt", tmp_path / "tiny"
    train_sentencepiece(write_tiny(model, vocab_size=360))
    asked = ["--checkpoint_path", str(model), "-q", "int8wo", "--prompt", "it's me"]
    cli(*TINY, *asked, "--write_result", str(path))
    line = path.read_text(encoding="utf-8").removesuffix("\n")
    assert " quant: int8wo, mod: tiny, kv_quant: False," in line
    assert ", dtype: torch.float32, device: cpu repro: python " in line
    _, _, _, *command = shlex.split(line.partition(" repro: ")[2])
    cli(*command, "--write_result", str(path))
    first, second = path.read_text(encoding="utf-8").splitlines()
    assert first == line
    assert without_speeds(second) == without_speeds(first) != first


def test_a_preset_prints_tokens_and_averages(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = SystemLoad(seconds=1.0, cores=2, threads=2, other_cores=0.9)
    watch = Mock(load=Mock(return_value=busy))
    monkeypatch.setattr(timing, "LoadWatch", lambda _device: watch)
    trace = tmp_path / "trace.json"
    options = ("--num_samples", "2", "--precision", "torch.float32")
    output, _ = cli(*TINY, *options, "--profile", str(trace))
    assert "(no tokenizer: a prompt of 6 random tokens)" in output
    assert "weights: synthetic" in output
    one, other = token_lists(output)
    assert len(one) == len(other) == 6 + 3
    assert one != other, "samples are drawn"
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
        r"Peak Memory Usage: 0\.\d\d GB\nModel Size: 0\.06 GB\n"
        r"Disturbed: other processes took 0\.9 of 2 cores\n$",
        output,
    )
    assert f"wrote {trace}" in output
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    assert "aten::linear" in {event.get("name") for event in events}


def test_prefill_and_batch(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Mock(wraps=prepare_row)
    monkeypatch.setattr(generate_run, "prepare_row", prepare)
    output, _ = cli(*TINY, "--prefill_size", "11", "--batch_size", "3")
    row, prompt = prepare.call_args.args[0], prepare.call_args.kwargs["prompt"]
    assert (row.batch_size, row.prompt_length) == prompt.shape == (3, 11)
    assert torch.equal(prompt, prompt[:1].expand(3, -1))
    # As in the reference, whose random prompts held ids below 1024.
    assert prompt.max() < 1024
    texts = token_lists(output)
    assert len(texts) == 3
    for text, own in zip(texts, prompt.tolist(), strict=True):
        assert text[:11] == own
    # They are drawn.
    assert texts[0] != texts[1]
    for number, text in enumerate(texts, start=1):
        assert f"text {number} of 3:\n{text}\n" in output
    assert "no tokenizer" not in output


def test_greedy_runs_repeat_without_tokenizer(tmp_path: Path, cli: CommandLine) -> None:
    asked = ("--checkpoint_path", str(write_tiny(tmp_path)), "--temperature", "0")
    first, second = (token_lists(cli(*TINY, *asked)[0]) for _ in range(2))
    assert first == second


def test_greedy_texts_are_the_same_and_hold_the_prompt(cli: CommandLine) -> None:
    prompt = "The capital of France is"
    asked = ("--checkpoint_path", str(smollm2_path()), "--temperature", "0")
    output, _ = cli(*TINY, *asked, "--num_samples", "2", "--prompt", prompt)
    assert "weights: gguf:" in output
    first, second = re.findall(r"^The [^\n]+", output, re.MULTILINE)
    assert first == second
    assert first.startswith(f"{prompt} Paris")


def write_answering_model(patch: pytest.MonkeyPatch, folder: Path, answer: str) -> Path:
    """A checkpoint that answers every prompt with `answer` and the end of text."""
    path = train_sentencepiece(write_tiny(folder, vocab_size=360))
    tokenizer = files.load_tokenizer(path)
    ids = [*tokenizer.encode(answer, bos=False), *tokenizer.eos_ids]
    # What comes after the end is not shown.
    tokens = torch.tensor(2 * ids)
    patch.setattr(
        Engine, "stream", lambda *_, max_new_tokens, **__: iter(tokens[:max_new_tokens])
    )
    return folder


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, cli: CommandLine) -> Talk:
    """What is printed while a user types lines and then ends the input."""

    def typed(
        model: Path | str, *lines: str, options: str = "", code: int = 0
    ) -> tuple[str, str]:
        text = "".join(f"{line}\n" for line in lines)
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        words = f"--checkpoint_path {model} --device cpu --precision float32 {options}"
        return cli("generate", "--interactive", *words.split(), code=code)

    return typed


@pytest.fixture
def conversations(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, str]]]:
    """The conversations that were put into a template."""
    seen: list[list[tuple[str, str]]] = []

    def encode(tokenizer: Any, messages: list[chat.Message]) -> list[int]:
        seen.append([*messages])
        return chat.encode_chat(tokenizer, messages)

    monkeypatch.setattr(generate_run, "encode_chat", encode)
    return seen


def test_a_talk_ends_with_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talk: Talk, conversations: Any
) -> None:
    model = write_answering_model(monkeypatch, tmp_path / "model", "brown fox")
    # An empty line asks again.
    lines = ("", "   ", "What is it?", "And what is it?")
    answers = f"{3 * ASK}brown fox\n{ASK}brown fox\n{ASK}\n"
    assert talk(model, *lines) == (answers, "")
    # A model that is no chat gets no template.
    assert conversations == []
    # No more tokens than asked for are shown.
    output, _ = talk(model, "What is it?", options="--max_new_tokens 1")
    answer = output.replace(ASK, "").rstrip("\n")
    assert "brown fox".startswith(answer)
    assert answer != "brown fox"


def test_a_character_of_several_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talk: Talk
) -> None:
    # Four bytes that the vocabulary has only one by one.
    model = write_answering_model(monkeypatch, tmp_path, "\N{GRINNING FACE}")
    output, _ = talk(model, "What is it?")
    assert output == f"{ASK}\N{GRINNING FACE}\n{ASK}\n"


def test_a_template_makes_a_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talk: Talk, conversations: Any
) -> None:
    model = write_answering_model(monkeypatch, tmp_path / "tiny", "brown fox")
    text = "{{ messages | map(attribute='content') | join('|') }}{{ eos_token }}"
    config = {"chat_template": text, "eos_token": "</s>"}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    talk(model, "What is it?", "And what?")
    assert list(map(len, conversations)) == [1, 3]
    config["chat_template"] = "{{ raise_exception('No talk,\\nplease') }}"
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    _, error = talk(model, "What is it?", code=2)
    source = f"{model}/tokenizer_config.json: chat_template"
    assert error.endswith(f"error: {source}: No talk,\\nplease\n")


def test_a_chat_keeps_what_the_cache_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talk: Talk, conversations: Any
) -> None:
    model = write_answering_model(monkeypatch, tmp_path / "tiny-chat", "brown fox")
    talk(model, "What is it?", "And what is it?")
    assert conversations[1] == [
        ("user", "What is it?"),
        ("assistant", "brown fox"),
        ("user", "And what is it?"),
    ]
    conversations.clear()
    lines = ("What is it?", "What " * 90, "What is it?")
    output, error = talk(model, *lines, options="--max_new_tokens 20 --cache_size 64")
    assert re.fullmatch(r"prompt: .*the cache of 64 positions; starting over\n", error)
    assert output == f"{ASK}brown fox\n{ASK}{ASK}brown fox\n{ASK}\n"
    assert list(map(len, conversations)) == [1, 3, 1]


def test_smollm2_answers_in_its_template(talk: Talk, conversations: list[Any]) -> None:
    smollm2_path()
    question = "What is the capital of France?"
    # Its end-of-turn mark ends the answer before the twenty tokens are full.
    options = "--temperature 0 --max_new_tokens 20"
    output, _ = talk("SmolLM2-135M-Instruct", question, question, options=options)
    answer = "The capital of France is Paris."
    assert output.startswith(f"{ASK}{answer}\n{ASK}")
    assert conversations[1][1] == ("assistant", answer)

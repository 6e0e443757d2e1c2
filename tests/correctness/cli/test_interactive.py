"""`generate --interactive`: prompts from a terminal, answers until the end of text."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf.checkpoints.tokenizers import chat, files
from llama_perf.cli import generate_run
from llama_perf.llama.engine import Engine
from scripts.doc_tables.smollm2 import smollm2_path
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.plugin_project import write_tiny
from tests.correctness.support.tokenizer_samples import train_sentencepiece

Talk = Callable[..., tuple[str, str]]
ASK = "What is your prompt? "


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

    def typed(model: Path | str, *lines: str, options: str = "") -> tuple[str, str]:
        text = "".join(f"{line}\n" for line in lines)
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        words = f"--checkpoint_path {model} --device cpu --precision float32 {options}"
        return cli("generate", "--interactive", *words.split())

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

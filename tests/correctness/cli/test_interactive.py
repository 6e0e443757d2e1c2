"""`generate --interactive`: prompts from a terminal, answers until the end of text."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf.checkpoints.tokenizers import chat
from llama_perf.checkpoints.tokenizers.chat import Message
from llama_perf.checkpoints.tokenizers.files import load_tokenizer
from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer
from llama_perf.cli import generate_interactive
from llama_perf.cli.main import main
from scripts.doc_tables.smollm2 import smollm2_path
from tests.correctness.support.command_line import refusal
from tests.correctness.support.tokenizer_samples import train_sentencepiece
from tests.correctness.support.weights_samples import (
    CONFIG_JSON,
    TINY,
    all_weights,
    tiny_weights,
    write_json,
)

Answering = Callable[[str], Path]
Type = Callable[..., list[str]]


def write_answering_model(folder: Path, answer: str) -> Path:
    """A checkpoint that answers every prompt with `answer` and the end of text.

    Its layers add nothing, so that a token decides the next one by itself: any token
    leads to the first of the answer, and each of those to the one after it.
    """
    folder.mkdir()
    tokenizer = load_tokenizer(train_sentencepiece(folder))
    (end,) = tokenizer.eos_ids
    chain = tokenizer.encode(answer, bos=False)
    assert len({*chain, end}) == len(chain) + 1 < TINY.dim, "each leads to one other"
    size = tokenizer.vocab_size
    weights = all_weights(tiny_weights(replace(TINY, vocab_size=size)))
    for name, tensor in weights.items():
        if name.endswith(("wo.weight", "w2.weight")):
            tensor.zero_()
    directions = 10 * torch.eye(TINY.dim)
    embedding, output = torch.zeros(2, size, TINY.dim)
    embedding[:] = directions[0]
    for number, token in enumerate(chain):
        output[token] = directions[number]
        embedding[token] = directions[number + 1]
    output[end] = directions[len(chain)]
    weights |= {"tok_embeddings.weight": embedding, "output.weight": output}
    torch.save(weights, folder / "model.pth")
    write_json(folder / "config.json", CONFIG_JSON | {"vocab_size": size})
    return folder


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> Type:
    """Types lines at the prompt, then ends the input; gives the prompts shown."""

    def type_lines(*lines: str) -> list[str]:
        left, shown = list(lines), []

        def read(prompt: str) -> str:
            shown.append(prompt)
            if not left:
                raise EOFError
            return left.pop(0)

        monkeypatch.setattr(builtins, "input", read)
        return shown

    return type_lines


@pytest.fixture
def conversations(monkeypatch: pytest.MonkeyPatch) -> list[list[Message]]:
    """The conversations that were put into a template."""
    seen: list[list[Message]] = []

    def encode(tokenizer: Tokenizer, messages: Any) -> list[int]:
        seen.append(list(messages))
        return original(tokenizer, messages)

    original = chat.encode_chat
    monkeypatch.setattr(generate_interactive, "encode_chat", encode)
    return seen


def talk(checkpoint: Path | str, *options: str) -> int:
    words = ["--device", "cpu", "--precision", "float32", "--interactive"]
    return main(["generate", "--checkpoint_path", str(checkpoint), *words, *options])


def test_an_answer_ends_with_the_text_and_the_talk_with_the_input(
    tmp_path: Path, typing: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_answering_model(tmp_path / "model", "brown fox")
    shown = typing("What is it?", "And what is it?")
    assert talk(model) == 0
    assert shown == ["What is your prompt? "] * 3
    output = capsys.readouterr()
    assert output.out == "brown fox\nbrown fox\n\n"
    assert output.err == ""


def test_no_more_tokens_than_asked_for_are_shown(
    tmp_path: Path, typing: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_answering_model(tmp_path / "model", "brown fox")
    typing("What is it?")
    assert talk(model, "--max_new_tokens", "1") == 0
    answer = capsys.readouterr().out.rstrip("\n")
    assert "brown fox".startswith(answer)
    assert answer != "brown fox"


def test_a_character_of_several_tokens_is_shown_whole(
    tmp_path: Path, typing: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    # Four bytes that the vocabulary has only one by one.
    model = write_answering_model(tmp_path / "model", "\N{GRINNING FACE}")
    typing("What is it?")
    assert talk(model) == 0
    assert capsys.readouterr().out.strip() == "\N{GRINNING FACE}"


def test_an_empty_line_asks_again(
    tmp_path: Path, typing: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_answering_model(tmp_path / "model", "brown fox")
    shown = typing("", "   ", "What is it?")
    assert talk(model) == 0
    assert len(shown) == 4
    assert capsys.readouterr().out == "brown fox\n\n"


def test_a_chat_keeps_the_conversation(
    tmp_path: Path, typing: Type, conversations: list[list[Message]]
) -> None:
    model = write_answering_model(tmp_path / "tiny-chat", "brown fox")
    typing("What is it?", "And what is it?")
    assert talk(model) == 0
    assert [(message.role, message.content) for message in conversations[1]] == [
        ("user", "What is it?"),
        ("assistant", "brown fox"),
        ("user", "And what is it?"),
    ]


def test_a_model_that_is_no_chat_gets_no_template(
    tmp_path: Path, typing: Type, conversations: list[list[Message]]
) -> None:
    model = write_answering_model(tmp_path / "model", "brown fox")
    typing("What is it?")
    assert talk(model) == 0
    assert conversations == []


def test_a_prompt_longer_than_the_cache_starts_over(
    tmp_path: Path,
    typing: Type,
    conversations: list[list[Message]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = write_answering_model(tmp_path / "tiny-chat", "brown fox")
    typing("What is it?", "What " * 90, "What is it?")
    assert talk(model, "--max_new_tokens", "20", "--cache_size", "64") == 0
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert output.err.startswith("prompt: ")
    assert "the cache of 64 positions; starting over" in output.err
    assert output.out == "brown fox\nbrown fox\n\n"
    assert [len(conversation) for conversation in conversations] == [1, 3, 1]


def test_a_model_without_a_tokenizer_is_refused(
    typing: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = typing("What is it?")
    words = ("--checkpoint_path", "stories15M", "--device", "cpu", "--interactive")
    message = refusal(capsys, "generate", *words)
    assert message == "interactive: 'stories15M' has no tokenizer"
    assert shown == []


def test_smollm2_answers_in_its_template(
    typing: Type, conversations: list[list[Message]], capsys: pytest.CaptureFixture[str]
) -> None:
    smollm2_path()
    typing("What is the capital of France?")
    greedy = ("--temperature", "0", "--max_new_tokens", "20")
    assert talk("SmolLM2-135M-Instruct", *greedy) == 0
    assert len(conversations) == 1
    # Its end-of-turn mark ends the answer before the twenty tokens are full.
    assert capsys.readouterr().out == "The capital of France is Paris.\n\n"

"""`generate --interactive`: prompts from a terminal, answers until the end of text."""

import builtins
import re
from pathlib import Path

import pytest
import torch

from llama_perf.checkpoints.tokenizers import chat, files, tokenizer
from llama_perf.checkpoints.tokenizers.chat import Message
from llama_perf.cli import generate_run
from scripts.doc_tables.smollm2 import smollm2_path
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.plugin_project import write_tiny
from tests.correctness.support.tokenizer_samples import train_sentencepiece


def write_answering_model(folder: Path, answer: str) -> Path:
    """A checkpoint that answers every prompt with `answer` and the end of text.

    Its layers add nothing, so that a token decides the next one by itself: any token
    leads to the first of the answer, and each of those to the one after it.
    """
    folder.mkdir()
    tokens = files.load_tokenizer(train_sentencepiece(folder))
    weights = torch.load(write_tiny(folder, vocab_size=tokens.vocab_size) / "model.pth")
    embedding, output = weights["tok_embeddings.weight"], weights["output.weight"]
    (end,), chain = tokens.eos_ids, tokens.encode(answer, bos=False)
    dim = output.shape[1]
    assert len({*chain, end}) == len(chain) + 1 < dim, "each leads to one other"
    for name, tensor in weights.items():
        if name.endswith(("wo.weight", "w2.weight", "output.weight")):
            tensor.zero_()
    directions = 10 * torch.eye(dim)
    embedding[:] = directions[0]
    for number, token in enumerate(chain):
        output[token] = directions[number]
        embedding[token] = directions[number + 1]
    output[end] = directions[len(chain)]
    torch.save(weights, folder / "model.pth")
    return folder


class Terminal:
    """A user who types lines at the prompt and then ends the input."""

    def __init__(self, patch: pytest.MonkeyPatch, cli: CommandLine) -> None:
        self.cli = cli
        self.prompts: list[str] = []
        """The prompts that were shown."""
        self.conversations: list[list[Message]] = []
        """The conversations that were put into a template."""
        self._lines: list[str] = []
        patch.setattr(builtins, "input", self._read)
        patch.setattr(generate_run, "encode_chat", self._encode)

    def _read(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if not self._lines:
            raise EOFError
        return self._lines.pop(0)

    def _encode(self, words: tokenizer.Tokenizer, messages: list[Message]) -> list[int]:
        self.conversations.append([*messages])
        return chat.encode_chat(words, messages)

    def talk(
        self, checkpoint: Path | str, *lines: str, options: str = ""
    ) -> tuple[str, str]:
        """What is printed while the user types `lines`."""
        self._lines = list(lines)
        words = ["--device", "cpu", "--precision", "float32", "--interactive"]
        start = ["generate", "--checkpoint_path", str(checkpoint)]
        return self.cli(*start, *words, *options.split())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, cli: CommandLine) -> Terminal:
    return Terminal(monkeypatch, cli)


def test_a_talk_ends_with_the_input(tmp_path: Path, terminal: Terminal) -> None:
    model = write_answering_model(tmp_path / "model", "brown fox")
    # An empty line asks again.
    lines = ("", "   ", "What is it?", "And what is it?")
    assert terminal.talk(model, *lines) == ("brown fox\nbrown fox\n\n", "")
    assert terminal.prompts == ["What is your prompt? "] * 5
    # A model that is no chat gets no template.
    assert terminal.conversations == []
    # No more tokens than asked for are shown.
    output, _ = terminal.talk(model, "What is it?", options="--max_new_tokens 1")
    answer = output.rstrip("\n")
    assert "brown fox".startswith(answer)
    assert answer != "brown fox"


def test_a_character_of_several_tokens(tmp_path: Path, terminal: Terminal) -> None:
    # Four bytes that the vocabulary has only one by one.
    model = write_answering_model(tmp_path / "model", "\N{GRINNING FACE}")
    output, _ = terminal.talk(model, "What is it?")
    assert output.strip() == "\N{GRINNING FACE}"


def test_a_chat_keeps_what_the_cache_holds(tmp_path: Path, terminal: Terminal) -> None:
    model = write_answering_model(tmp_path / "tiny-chat", "brown fox")
    terminal.talk(model, "What is it?", "And what is it?")
    conversation = terminal.conversations[1]
    assert [(message.role, message.content) for message in conversation] == [
        ("user", "What is it?"),
        ("assistant", "brown fox"),
        ("user", "And what is it?"),
    ]
    terminal.conversations.clear()
    lines = ("What is it?", "What " * 90, "What is it?")
    options = "--max_new_tokens 20 --cache_size 64"
    output, error = terminal.talk(model, *lines, options=options)
    assert re.fullmatch(r"prompt: .*the cache of 64 positions; starting over\n", error)
    assert output == "brown fox\nbrown fox\n\n"
    assert list(map(len, terminal.conversations)) == [1, 3, 1]


def test_a_model_without_a_tokenizer_is_refused(terminal: Terminal) -> None:
    words = ("--checkpoint_path", "stories15M", "--device", "cpu", "--interactive")
    message = terminal.cli.refusal("generate", *words)
    assert message == "interactive: 'stories15M' has no tokenizer"
    assert terminal.prompts == []


def test_smollm2_answers_in_its_template(terminal: Terminal) -> None:
    smollm2_path()
    question, greedy = "What is the capital of France?", "--temperature 0"
    # Its end-of-turn mark ends the answer before the twenty tokens are full.
    options = f"{greedy} --max_new_tokens 20"
    output, _ = terminal.talk("SmolLM2-135M-Instruct", question, options=options)
    assert output == "The capital of France is Paris.\n\n"
    assert len(terminal.conversations) == 1

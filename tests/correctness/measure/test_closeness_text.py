"""The text of closeness: built in, a user's file, or drawn; what is refused."""

import re
from pathlib import Path

import pytest
import torch

from llama_perf.errors import NotRunnable, SpecError, UserError
from llama_perf.measure.closeness_text import TOKENS, Text, text_of
from tests.correctness.support.errors import refusal
from tests.correctness.support.tokenizer_samples import llama3, smollm2

ENGLISH = "The user is the user, and the singer is in the ring. " * 4


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "my-text.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_the_built_in_text_is_prose_of_400_to_600_tokens() -> None:
    text = text_of(smollm2(), 49152, tokens=400)
    assert text.name == "built-in"
    words = smollm2().decode(text.ids.tolist())
    assert words.startswith("The old ferry left the northern quay")
    message = refusal(text_of, smollm2(), 49152, tokens=600)
    found = re.fullmatch(
        r"tokens: 600 is not allowed; built-in has (\d+) tokens in this model's"
        r" vocabulary",
        message,
    )
    assert found is not None
    assert 400 < int(found[1]) < 600
    assert len(text_of(smollm2(), 49152).ids) == TOKENS


def test_a_file_is_read_as_the_model_reads_it(tmp_path: Path) -> None:
    path, tokenizer = written(tmp_path, ENGLISH), llama3()
    text = text_of(tokenizer, 300, file=path)
    assert text.ids.tolist() == tokenizer.encode(ENGLISH)[:TOKENS]
    assert text.name == "my-text.txt"
    assert len(text_of(tokenizer, 300, file=path, tokens=40).ids) == 40


def test_two_texts_have_two_summaries(tmp_path: Path) -> None:
    one = text_of(llama3(), 300, file=written(tmp_path, ENGLISH))
    other = text_of(llama3(), 300, file=written(tmp_path, f"{ENGLISH[:-2]}!"))
    assert one.summary != other.summary
    assert re.fullmatch(r"my-text\.txt [0-9a-f]{8}", one.summary)
    assert one.summary != one.first(40).summary
    same = Text(name=one.name, ids=one.ids.clone())
    assert same.summary == one.summary


def test_without_a_tokenizer_ids_are_drawn_and_are_always_the_same() -> None:
    text = text_of(None, 300)
    assert (text.name, len(text.ids)) == ("drawn", TOKENS)
    assert torch.equal(text.ids, text_of(None, 300).ids)
    assert 0 <= int(text.ids.min()) < 20 < 280 < int(text.ids.max()) < 300
    assert torch.equal(text_of(None, 300, tokens=40).ids, text.ids[:40])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\xff\xfe\x00", "cannot be read: it is not UTF-8 text"),
        ("", "cannot be read: there is no text in it"),
        (" \n\t", "cannot be read: there is no text in it"),
        ("\0" * 99, "cannot be read: it has zero bytes, so it is no text"),
    ],
)
def test_what_is_no_text(tmp_path: Path, content: str | bytes, problem: str) -> None:
    path = written(tmp_path, content)
    message = refusal(text_of, llama3(), 300, file=path, error=UserError)
    assert message == f"{path}: {problem}"


def test_what_is_too_short_or_cannot_be_written_in_tokens(tmp_path: Path) -> None:
    path = written(tmp_path, "Hello")
    assert refusal(text_of, llama3(), 300, file=path, error=UserError) == (
        "text: my-text.txt has 2 tokens in this model's vocabulary; at least 32 are"
        " needed"
    )
    assert refusal(text_of, llama3(), 300, file=path, tokens=32, error=SpecError) == (
        "tokens: 32 is not allowed; my-text.txt has 2 tokens in this model's vocabulary"
    )


def test_no_file_is_read_without_a_tokenizer(tmp_path: Path) -> None:
    path = written(tmp_path, ENGLISH)
    assert refusal(text_of, None, 300, file=path, error=NotRunnable) == (
        f"text: {path} cannot be read: this model has no tokenizer; without --text the"
        " ids are drawn"
    )

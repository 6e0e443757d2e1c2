from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_perf.checkpoints.tokenizers.tokenizer import (
    check_vocabulary,
    find_tokenizer,
    load_tokenizer,
)
from llama_perf.errors import TokenizerError
from tests.correctness.support.tokenizer_samples import (
    SPECIAL,
    TOKENS,
    gguf_vocabulary,
    train_sentencepiece,
    write_gguf,
    write_tiktoken,
)


def error(path: Path) -> str:
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04", b"{}", b"abc 1"])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    assert error(path) == (
        "no tokenizer; allowed: a sentencepiece model, lines of base64 and rank as"
        " Llama 3 has them, a GGUF file"
    )


def test_missing_file_and_empty_folder(tmp_path: Path) -> None:
    assert error(tmp_path / "absent") == "no such file or folder"
    assert error(tmp_path) == (
        "no tokenizer; allowed: a folder with tokenizer.model or"
        " original/tokenizer.model, or with one .gguf that holds a tokenizer"
    )


def test_truncated_sentencepiece(tmp_path: Path) -> None:
    path = train_sentencepiece(tmp_path)
    content = path.read_bytes()
    for size in range(1, len(content) - 100, 97):
        path.write_bytes(content[:size])
        assert error(path) == "a damaged or truncated sentencepiece model"


def test_truncated_tiktoken(tmp_path: Path) -> None:
    path = write_tiktoken(tmp_path / "tokenizer.model")
    content = path.read_text()
    path.write_text(content[: content.index(" 270")])
    assert error(path) == (
        "line 271: 'SGU=' is not allowed; allowed: a token in base64, a space and"
        " its rank"
    )
    path.write_text(content[: content.index(" 270") + 3])
    assert error(path) == "damaged or truncated: of 271 tokens none has rank 270"
    path.write_text(content[: content.index(" 200")] + " 200\n")
    assert error(path) == "no token for the byte 0xc9"
    path.write_text(content.replace(" 20\n", " x\n"))
    assert error(path).startswith("line 21: 'FA== x' is not allowed")
    path.write_text(content + "SGU= 273\n")
    assert error(path) == "line 274: the token b'He' again"


def test_truncated_gguf(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    content = path.read_bytes()
    end = len(content)
    for size in [*range(4, end, 61), *range(end - 6, end)]:
        path.write_bytes(content[:size])
        assert error(path) == "damaged, truncated, or no GGUF file of version 2 or 3"


def test_damaged_length_in_a_gguf_ends(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    content = path.read_bytes()
    at = content.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    path.write_bytes(content[:at] + b"\xff" * 8 + content[at + 8 :])
    assert error(path) == "damaged, truncated, or no GGUF file of version 2 or 3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda merges: [merges[1], merges[0], *merges[2:]],
            "merges: 't h' is not allowed; allowed: merges in the order of their"
            " tokens",
        ),
        (
            lambda merges: [*merges, "q q"],
            "merges: 'q q' is not allowed; allowed: two parts of a token",
        ),
        (
            lambda merges: merges[1:],
            "tokens: b'th' is not allowed; allowed: tokens that a merge makes",
        ),
    ],
)
def test_gguf_whose_merges_are_not_its_tokens_in_order(
    tmp_path: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    merges = change(gguf_vocabulary()[1])
    path = write_gguf(tmp_path / "model.gguf", merges=merges)
    assert error(path) == f"tokenizer.ggml.{message}"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "llama"}, "model: 'llama' is not allowed; allowed: gpt2"),
        ({"model": ""}, "model: the field is missing"),
        (
            {"pre": "qwen2"},
            "pre: 'qwen2' is not allowed; allowed: gpt-2, smollm, llama-bpe, llama3,"
            " llama-v3",
        ),
        ({"pre": ""}, "pre: the field is missing"),
        (
            {"tokens": ["a", "b c", *SPECIAL]},
            "tokens: 'b c' is not allowed; allowed: GPT-2's writing of bytes",
        ),
        ({"tokens": ["a", "a", *SPECIAL]}, "tokens: 1 of 4 stand there twice"),
        ({"tokens": SPECIAL}, "tokens: none of 2 is an ordinary one"),
        ({"types": [1]}, "token_type: not one for each of 275 tokens"),
        ({"types": [6] * 275}, "token_type: 6 is not allowed; allowed: 1 to 5"),
        ({"add_bos_token": True}, "bos_token_id: the field is missing"),
        (
            {"add_bos_token": True, "bos_token_id": 275},
            "bos_token_id: 275 is not allowed; allowed: 0 to 274",
        ),
        (
            {"eos_token_id": 9999},
            "eos_token_id: 9999 is not allowed; allowed: 0 to 274",
        ),
    ],
)
def test_gguf_with_a_wrong_field(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    assert len(TOKENS) + len(SPECIAL) == 275
    path = write_gguf(tmp_path / "model.gguf", **fields)
    assert error(path) == f"tokenizer.ggml.{message}"


def test_tokenizer_of_a_checkpoint(tmp_path: Path) -> None:
    weights = tmp_path / "model.pth"
    weights.touch()
    for path in (tmp_path, weights, tmp_path / "absent", tmp_path / "absent.gguf"):
        assert find_tokenizer(path) is None
    (tmp_path / "original").mkdir()
    inner = write_tiktoken(tmp_path / "original" / "tokenizer.model")
    for path in (tmp_path, weights, tmp_path / "original"):
        assert find_tokenizer(path) == inner
    outer = write_tiktoken(tmp_path / "tokenizer.model")
    for path in (tmp_path, weights):
        assert find_tokenizer(path) == outer
    assert load_tokenizer(tmp_path).vocab_size == len(TOKENS) + 256


def test_tokenizer_in_a_gguf(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "one.gguf")
    assert find_tokenizer(path) == find_tokenizer(tmp_path) == path
    assert load_tokenizer(tmp_path).vocab_size == len(TOKENS) + len(SPECIAL)
    for model in ("", "no_vocab", "none"):
        write_gguf(path, model=model)
        assert find_tokenizer(path) is None
        assert find_tokenizer(tmp_path) is None
    other = write_gguf(tmp_path / "two.gguf")
    assert find_tokenizer(other) == other
    assert find_tokenizer(tmp_path) is None


@pytest.mark.parametrize("model", [529, 530, 1552])
def test_vocabulary_fits_or_is_padded(tmp_path: Path, model: int) -> None:
    tokenizer = load_tokenizer(write_tiktoken(tmp_path / "tokenizer.model"))
    check_vocabulary(tokenizer, model, source="here")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (528, "model of 528; allowed: 0 to 528 tokens"),
        (1553, "model of 1553; allowed: 530 to 1553 tokens"),
        (128256, "model of 128256; allowed: 127233 to 128256 tokens"),
    ],
)
def test_vocabulary_of_another_model(tmp_path: Path, model: int, message: str) -> None:
    tokenizer = load_tokenizer(write_tiktoken(tmp_path / "tokenizer.model"))
    assert tokenizer.vocab_size == len(TOKENS) + 256 == 529
    with pytest.raises(TokenizerError) as caught:
        check_vocabulary(tokenizer, model, source="tokenizer.model")
    assert str(caught.value) == (
        f"tokenizer.model: a tokenizer of 529 tokens is not allowed for a {message}"
    )

"""Tokenizers' files: where they are found, and how damaged ones are refused."""

from pathlib import Path
from typing import Any

import pytest

from llama_perf.checkpoints.tokenizers.files import find_tokenizer, load_tokenizer
from llama_perf.errors import TokenizerError
from tests.correctness.support import tokenizer_samples as samples

NO_GGUF = "damaged, truncated, or no GGUF file of version 2 or 3"


def refusal(
    path: Path, content: bytes | str | None = None, vocab_size: int | None = None
) -> str:
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path, vocab_size=vocab_size)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_no_tokenizer(tmp_path: Path) -> None:
    for content in (b"", b"garbage", b"PK\x03\x04", b"{}", b"abc 1"):
        assert refusal(tmp_path / "tokenizer.model", content) == (
            "no tokenizer; allowed: a sentencepiece model, lines of base64 and rank as"
            " Llama 3 has them, a GGUF file"
        )
    absent = "cannot be read: No such file or directory"
    assert refusal(tmp_path / "absent") == absent
    (tmp_path / "tokenizer.model").unlink()
    assert refusal(tmp_path) == (
        "no tokenizer; allowed: a folder with tokenizer.model or"
        " original/tokenizer.model, or with one .gguf that holds a tokenizer"
    )


def test_truncated_sentencepiece(tmp_path: Path) -> None:
    path = samples.train_sentencepiece(tmp_path)
    content = path.read_bytes()
    for size in range(1, len(content) - 100, 97):
        message = refusal(path, content[:size])
        assert message == "a damaged or truncated sentencepiece model"


def test_damaged_tiktoken(tmp_path: Path) -> None:
    path = samples.write_tiktoken(tmp_path / "tokenizer.model")
    content = path.read_text()
    start, last = content[: content.index(" 270")], content[: content.index(" 200")]
    needs = "is not allowed; allowed: a token in base64, a space and its rank"
    for damaged, message in {
        start: f"line 271: 'SGU=' {needs}",
        content.replace(" 20\n", " x\n"): f"line 21: 'FA== x' {needs}",
        f"{start} 27": "damaged or truncated: of 271 tokens none has rank 270",
        f"{last} 200\n": "no token for the byte 0xc9",
        # The same token again, instead of its own rank.
        f"{content}SGU= 273\n": "damaged or truncated: of 273 tokens none has rank 270",
    }.items():
        assert refusal(path, damaged) == message


def test_damaged_gguf(tmp_path: Path) -> None:
    path = samples.write_gguf(tmp_path / "model.gguf")
    content = path.read_bytes()
    end = len(content)
    for size in [*range(4, end, 61), *range(end - 6, end)]:
        assert refusal(path, content[:size]) == NO_GGUF
    at = content.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    absurd_length = content[:at] + b"\xff" * 8 + content[at + 8 :]
    assert refusal(path, absurd_length) == NO_GGUF


ONLY = "is not allowed; allowed:"
PRES = "'gpt-2', 'smollm', 'llama-bpe', 'llama3' or 'llama-v3'"
FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"model": "llama"}, "model: Input should be 'gpt2' (got 'llama')"),
    ({"model": ""}, "model: the field is missing"),
    ({"pre": "qwen2"}, f"pre: Input should be {PRES} (got 'qwen2')"),
    ({"pre": ""}, "pre: the field is missing"),
    (
        {"tokens": ["a", "b c", *samples.SPECIAL]},
        f"tokens: 'b c' {ONLY} GPT-2's writing of bytes",
    ),
    ({"tokens": ["a", "a", *samples.SPECIAL]}, "tokens: 1 of 4 stand there twice"),
    ({"tokens": samples.SPECIAL}, "tokens: none of 2 is an ordinary one"),
    ({"types": [1]}, "token_type: not one for each of 275 tokens"),
    (
        {"types": [6] * 275},
        "token_type.0: Input should be 1, 2, 3, 4 or 5 (got 6) (and 274 more)",
    ),
    ({"add_bos_token": True}, "bos_token_id: the field is missing"),
    (
        {"add_bos_token": True, "bos_token_id": 275},
        f"bos_token_id: 275 {ONLY} 0 to 274",
    ),
    ({"eos_token_id": 9999}, f"eos_token_id: 9999 {ONLY} 0 to 274"),
    # Merges that are not the tokens in order.
    ({"merges": ["th e", "t h"]}, f"merges: 't h' {ONLY} in the order of their tokens"),
    ({"merges": ["t h", "q q"]}, f"merges: 'q q' {ONLY} two parts of a token"),
    ({"merges": ["th e"]}, f"tokens: b'th' {ONLY} tokens that a merge makes"),
]


@pytest.mark.parametrize(("fields", "message"), FIELDS)
def test_gguf_with_a_wrong_field(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    path = samples.write_gguf(tmp_path / "model.gguf", **fields)
    assert refusal(path) == f"tokenizer.ggml: {message}"


def test_tokenizer_of_a_checkpoint(tmp_path: Path) -> None:
    weights = tmp_path / "model.pth"
    weights.touch()
    for path in (tmp_path, weights, tmp_path / "absent", tmp_path / "absent.gguf"):
        assert find_tokenizer(path) is None
    (tmp_path / "original").mkdir()
    inner = samples.write_tiktoken(tmp_path / "original" / "tokenizer.model")
    for path in (tmp_path, weights, tmp_path / "original"):
        assert find_tokenizer(path) == inner
    outer = samples.write_tiktoken(tmp_path / "tokenizer.model")
    for path in (tmp_path, weights):
        assert find_tokenizer(path) == outer
    assert load_tokenizer(tmp_path).vocab_size == 529


def test_tokenizer_in_a_gguf(tmp_path: Path) -> None:
    path = samples.write_gguf(tmp_path / "one.gguf")
    assert find_tokenizer(path) == find_tokenizer(tmp_path) == path
    assert load_tokenizer(tmp_path).vocab_size == 275
    for model in ("", "no_vocab", "none"):
        samples.write_gguf(path, model=model)
        assert find_tokenizer(path) is None
        assert find_tokenizer(tmp_path) is None
    other = samples.write_gguf(tmp_path / "two.gguf")
    assert find_tokenizer(other) == other
    assert find_tokenizer(tmp_path) is None


def test_the_models_vocabulary_fits_or_is_padded(tmp_path: Path) -> None:
    path = samples.write_tiktoken(tmp_path / "tokenizer.model")
    for size in (529, 530, 1552):
        assert load_tokenizer(path, vocab_size=size).vocab_size == 529
    for size, allowed in {528: "0", 1553: "530", 128256: "127233"}.items():
        assert refusal(path, vocab_size=size) == (
            f"a tokenizer of 529 tokens is not allowed for a model of {size}; allowed:"
            f" {allowed} to {size} tokens"
        )

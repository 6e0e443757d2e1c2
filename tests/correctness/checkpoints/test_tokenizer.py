"""Tokenizers compared with those of other packages; their files found or refused."""

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from gguf import TokenType
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_perf.checkpoints.tokenizers.files import find_tokenizer, load_tokenizer
from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer
from llama_perf.errors import PromptError, TokenizerError
from tests.correctness.support import tokenizer_samples as samples
from tests.correctness.support.errors import refusal
from tests.correctness.support.tokenizer_samples import SIZE, gpt2_text, llama3, smollm2

TEXTS = [
    "",
    " ",
    "Hello, my name is",
    "  two spaces first and last  ",
    "0123456789 007 3.14159 1e-5 x2y",
    "a  5   66\n  7\t8 \n\n 9",
    "one\n\ntwo\r\n\r\n three\n",
    "   \n\t  ",
    "don't we'll THEY'RE I'd 5's 'til it''s",
    "def f(x):\n    if x >= 10:\n        return {'a': [1, 2]}\n",
    "emoji \U0001f600\U0001f468‍\U0001f469‍\U0001f467 flags \U0001f1eb\U0001f1f7 ❤️",
    "漢字かな交じり文、한국어 텍스트",
    "½ Ⅷ ٣٤٥ ² mixed numerals",
    "naïve café, Ελληνικά, русский, עברית",
    "non-breaking\u00a0space, thin\u2009space\u30001",
    "?!...---***///<<<>>>",
]
FRAGMENTS = [
    *("a", "The", "é", "漢", "\U0001f600", "_", "!?", "'s", "'LL", "<|im_end|>"),
    *(" ", "   ", "\n", "\r\n", "\t", "\u00a0", "7", "42", "½"),
]
repeatable = settings(derandomize=True, deadline=None, max_examples=150)


def smollm2_ids(text: str) -> list[int]:
    ids: list[int] = samples.smollm2_reference().encode(text, split_special_tokens=True)
    return ids


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_gives_transformers_ids(text: str) -> None:
    assert smollm2().encode(text) == smollm2_ids(text)
    assert smollm2().decode(smollm2().encode(text)) == text


@repeatable
@given(parts=st.lists(st.sampled_from(FRAGMENTS), max_size=12))
def test_smollm2_gives_transformers_ids_of_any_mixture(parts: list[str]) -> None:
    assert smollm2().encode("".join(parts)) == smollm2_ids("".join(parts))


@repeatable
@given(text=st.text())
def test_smollm2_gives_any_text_back_or_refuses_it(text: str) -> None:
    # 21 bytes have no token: control characters and planes without characters.
    token_id = samples.smollm2_reference().backend_tokenizer.token_to_id
    if all(token_id(char) is not None for char in gpt2_text(text.encode())):
        assert smollm2().decode(smollm2().encode(text)) == text
    else:
        with pytest.raises(PromptError, match="the vocabulary has no token for its"):
            smollm2().encode(text)


def test_a_byte_without_a_token_is_named() -> None:
    encode = smollm2().encode
    assert refusal(encode, "fine, then \U00050000", error=PromptError) == (
        "prompt: '\\U00050000' is not allowed; the vocabulary has no token for its"
        " byte 0xf1"
    )


def test_smollm2_special_tokens() -> None:
    tokenizer, reference = smollm2(), samples.smollm2_reference()
    assert tokenizer.vocab_size == len(reference)
    assert tokenizer.bos_id is None
    assert reference.all_special_tokens
    for text in [*reference.all_special_tokens, "<|endoftext|>", "<|im_start|>"]:
        assert tokenizer.special[text] == reference.convert_tokens_to_ids(text)
    ends = ["<|endoftext|>", "<|im_end|>"]
    assert tokenizer.eos_ids == set(reference.convert_tokens_to_ids(ends))
    assert "the" not in tokenizer.special
    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.text == reference.chat_template


def test_sentencepiece(tmp_path: Path) -> None:
    path = samples.train_sentencepiece(tmp_path)
    tokenizer = load_tokenizer(path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert tokenizer.vocab_size == theirs.vocab_size()
    for text in [*TEXTS, "<s>", "</s> <unk>"]:
        ids = theirs.encode(text)
        assert tokenizer.encode(text, bos=False) == ids
        assert tokenizer.encode(text) == [theirs.bos_id(), *ids]
        assert tokenizer.decode(tokenizer.encode(text)) == theirs.decode(ids) == text
    assert (tokenizer.bos_id, set(tokenizer.eos_ids)) == (1, {2})
    assert tokenizer.special == {"<s>": 1, "</s>": 2}
    hello = tokenizer.encode("Hello", bos=False)
    assert tokenizer.decode([1, *hello, 2, tokenizer.vocab_size + 5]) == "Hello"
    assert tokenizer.decode(tokenizer.encode("broken \udcff")) == "broken ?"


def test_tiktoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    # Without it tiktoken keeps a copy of what it read, under the file's path.
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    path = samples.write_tiktoken(tmp_path / "tokenizer.model")
    converted = TikTokenConverter(vocab_file=str(path)).converted()
    tokenizer = load_tokenizer(path)
    for text in [*TEXTS, "<|eot_id|>", "Hello the user 12345"]:
        ids = tokenizer.encode(text, bos=False)
        assert ids == samples.llama3_encoding().encode_ordinary(text)
        assert ids == converted.encode(text).ids
        assert tokenizer.encode(text) == [SIZE, *ids]
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tiktoken_special_tokens() -> None:
    tokenizer = llama3()
    assert tokenizer.vocab_size == SIZE + 256
    # Llama 3's 128000, 128001, 128006, 128007, 128008 and 128009.
    names = ("begin_of_text", "end_of_text", "start_header_id", "end_header_id")
    ids = [tokenizer.special[f"<|{name}|>"] for name in (*names, "eom_id", "eot_id")]
    assert ids == [SIZE, SIZE + 1, SIZE + 6, SIZE + 7, SIZE + 8, SIZE + 9]
    assert len(tokenizer.special) == len(ids)
    assert tokenizer.bos_id == SIZE
    assert tokenizer.eos_ids == {SIZE + 1, SIZE + 8, SIZE + 9}
    assert tokenizer.decode([SIZE, *b"Hi", SIZE + 9, SIZE + 999]) == "Hi"
    assert tokenizer.decode(b"\xe6\xbc") == "\N{REPLACEMENT CHARACTER}"


def load_gguf(folder: Path, **fields: Any) -> Tokenizer:
    return load_tokenizer(samples.write_gguf(folder / "model.gguf", **fields))


def test_gguf_with_gpt2_splitting(tmp_path: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    tokens, merges = samples.gguf_vocabulary()
    theirs = ByteLevelBPETokenizer(
        vocab={token: id for id, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in merges],
    )
    tokenizer = load_gguf(tmp_path)
    for text in TEXTS:
        assert tokenizer.encode(text) == theirs.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("pre", ["llama-bpe", "llama3", "llama-v3"])
def test_gguf_with_llama3_splitting(tmp_path: Path, pre: str) -> None:
    # No merge leads to " Hel": as with Llama 3, it is a token where it is a word.
    tokens = [*samples.gguf_vocabulary()[0], gpt2_text(b" Hel"), *samples.SPECIAL]
    tokenizer = load_gguf(tmp_path, pre=pre, tokens=tokens, bos_token_id=SIZE + 1)
    for text in TEXTS:
        expected = samples.llama3_encoding().encode_ordinary(text)
        assert tokenizer.encode(text) == [SIZE + 1, *expected]
    assert tokenizer.encode(" Hel", bos=False) == [SIZE]
    assert tokenizer.eos_ids == {SIZE + 2}


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe"])
def test_gguf_says_whether_a_text_has_a_start(
    tmp_path: Path, pre: str, add: bool
) -> None:
    tokenizer = load_gguf(tmp_path, pre=pre, add_bos_token=add, bos_token_id=258)
    assert tokenizer.bos_id == (258 if add else None)
    assert tokenizer.encode("a") == ([258, ord("a")] if add else [ord("a")])
    assert tokenizer.encode("a", bos=False) == [ord("a")]


def test_gguf_tokens_of_every_kind(tmp_path: Path) -> None:
    tokens = [*samples.gguf_vocabulary()[0], "<tool>", "<pad>", "<pad>"]
    kinds = [TokenType.USER_DEFINED, TokenType.UNUSED, TokenType.UNUSED]
    tokenizer = load_gguf(
        tmp_path,
        tokens=tokens + samples.SPECIAL,
        token_type=[*[TokenType.NORMAL] * SIZE, *kinds, *[TokenType.CONTROL] * 2],
        eos_token_id=7,
    )
    assert tokenizer.vocab_size == SIZE + 5
    assert tokenizer.encode("x<tool>y") == [ord("x"), SIZE, ord("y")]
    assert tokenizer.decode([ord("x"), SIZE, SIZE + 1, SIZE + 3]) == "x<tool>"
    assert "<tool>" not in tokenizer.special
    assert tokenizer.encode("<pad>") == list(b"<pad>")
    assert tokenizer.eos_ids == {7, SIZE + 4}


def file_refusal(
    path: Path, content: bytes | str | None = None, vocab_size: int | None = None
) -> str:
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    size = {"vocab_size": vocab_size}
    message = refusal(load_tokenizer, path, **size, error=TokenizerError)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_no_tokenizer(tmp_path: Path) -> None:
    for content in (b"", b"garbage", b"PK\x03\x04", b"abc 1"):
        assert file_refusal(tmp_path / "tokenizer.model", content) == (
            "no tokenizer; allowed: a tokenizer.json, a sentencepiece model, lines of"
            " base64 and rank as Llama 3 has them, a GGUF file"
        )
    absent = "cannot be read: No such file or directory"
    assert file_refusal(tmp_path / "absent") == absent


def test_damaged_sentencepiece_and_gguf(tmp_path: Path) -> None:
    path = samples.train_sentencepiece(tmp_path)
    content = path.read_bytes()
    for size in range(1, len(content) - 100, 97):
        damage = "a damaged or truncated sentencepiece model"
        assert file_refusal(path, content[:size]) == damage
    path = samples.write_gguf(tmp_path / "model.gguf")
    content, name = path.read_bytes(), b"tokenizer.ggml.tokens"
    at = content.index(name) + len(name) + 8
    absurd_length = content[:at] + b"\xff" * 8 + content[at + 8 :]
    damage = "damaged, truncated, or no GGUF file of version 2 or 3"
    sizes = range(1, len(content) - 3, 61)
    for damaged in (absurd_length, *(content[:-size] for size in sizes)):
        assert file_refusal(path, damaged) == damage


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
        assert file_refusal(path, damaged) == message


ONLY = "is not allowed; allowed:"
PRES = "'gpt-2', 'smollm', 'qwen2', 'llama-bpe', 'llama3' or 'llama-v3'"
FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"model": "llama"}, "model: 'llama' is not allowed; allowed: 'gpt2'"),
    ({"model": ""}, "model: the field is missing"),
    ({"pre": "tekken"}, f"pre: 'tekken' is not allowed; allowed: {PRES}"),
    ({"pre": ""}, "pre: the field is missing"),
    (
        {"tokens": ["a", "b c", *samples.SPECIAL]},
        f"tokens: 'b c' {ONLY} GPT-2's writing of bytes",
    ),
    ({"tokens": ["a", "a", *samples.SPECIAL]}, "tokens: 1 of 4 stand there twice"),
    ({"tokens": samples.SPECIAL}, "tokens: none of 2 is an ordinary one"),
    ({"token_type": [1]}, "token_type: not one for each of 275 tokens"),
    (
        {"token_type": [6] * 275},
        "token_type.0: 6 is not allowed; allowed: 1, 2, 3, 4 or 5 (and 274 more)",
    ),
    ({"add_bos_token": True}, "bos_token_id: the field is missing"),
    (
        {"add_bos_token": True, "bos_token_id": 275},
        f"bos_token_id: 275 {ONLY} 0 to 274",
    ),
    ({"eos_token_id": 9999}, f"eos_token_id: 9999 {ONLY} 0 to 274"),
    ({"merges": ["t h", "q q"]}, f"merges: 'q q' {ONLY} two tokens that make a token"),
    ({"merges": ["th"]}, f"merges: 'th' {ONLY} two tokens that make a token"),
]


@pytest.mark.parametrize(("fields", "message"), FIELDS)
def test_gguf_with_a_wrong_field(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    path = samples.write_gguf(tmp_path / "model.gguf", **fields)
    assert file_refusal(path) == f"tokenizer.ggml: {message}"


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


def test_tokenizer_in_a_gguf(tmp_path: Path) -> None:
    path = samples.write_gguf(tmp_path / "one.gguf")
    assert find_tokenizer(path) == find_tokenizer(tmp_path) == path
    for model in ("", "no_vocab", "none"):
        samples.write_gguf(path, model=model)
        assert find_tokenizer(path) is find_tokenizer(tmp_path) is None
    other = samples.write_gguf(tmp_path / "two.gguf")
    assert find_tokenizer(other) == other
    assert find_tokenizer(tmp_path) is None


def test_the_models_vocabulary_fits_or_is_padded(tmp_path: Path) -> None:
    path = samples.write_tiktoken(tmp_path / "tokenizer.model")
    for size in (529, 530, 1552):
        assert load_tokenizer(path, vocab_size=size).vocab_size == 529
    for size, allowed in {528: "0", 1553: "530", 128256: "127233"}.items():
        assert file_refusal(path, vocab_size=size) == (
            f"a tokenizer of 529 tokens is not allowed for a model of {size}; allowed:"
            f" {allowed} to {size} tokens"
        )

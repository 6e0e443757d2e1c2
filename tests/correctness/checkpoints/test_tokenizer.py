from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
from gguf import TokenType
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer, load_tokenizer
from llama_perf.errors import PromptError
from scripts.doc_tables.smollm2 import smollm2_path
from tests.correctness.support.tokenizer_samples import (
    SPECIAL,
    TOKENS,
    gguf_vocabulary,
    gpt2_text,
    smollm2_reference,
    train_sentencepiece,
    write_gguf,
    write_tiktoken,
)

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


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return load_tokenizer(smollm2_path())


@pytest.fixture(scope="module")
def reference() -> Any:
    return smollm2_reference()


@pytest.fixture(scope="module")
def sentencepiece_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(tmp_path_factory.mktemp("sentencepiece"))


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_gives_transformers_ids(
    smollm2: Tokenizer, reference: Any, text: str
) -> None:
    assert smollm2.encode(text) == reference.encode(text, split_special_tokens=True)
    assert smollm2.decode(smollm2.encode(text)) == text


@repeatable
@given(parts=st.lists(st.sampled_from(FRAGMENTS), max_size=12))
def test_smollm2_gives_transformers_ids_of_any_mixture(
    smollm2: Tokenizer, reference: Any, parts: list[str]
) -> None:
    text = "".join(parts)
    assert smollm2.encode(text) == reference.encode(text, split_special_tokens=True)


@repeatable
@given(text=st.text())
def test_smollm2_gives_any_text_back_or_refuses_it(
    smollm2: Tokenizer, reference: Any, text: str
) -> None:
    # 21 bytes have no token: control characters and planes without characters.
    token_id = reference.backend_tokenizer.token_to_id
    if all(token_id(char) is not None for char in gpt2_text(text.encode())):
        assert smollm2.decode(smollm2.encode(text)) == text
    else:
        with pytest.raises(PromptError, match="the vocabulary has no token for its"):
            smollm2.encode(text)


def test_smollm2_special_tokens(smollm2: Tokenizer, reference: Any) -> None:
    assert smollm2.vocab_size == len(reference)
    assert smollm2.bos_id is None
    assert reference.all_special_tokens
    for text in [*reference.all_special_tokens, "<|endoftext|>", "<|im_start|>"]:
        assert smollm2.special_id(text) == reference.convert_tokens_to_ids(text)
    ends = ["<|endoftext|>", "<|im_end|>"]
    assert smollm2.eos_ids == set(reference.convert_tokens_to_ids(ends))
    assert smollm2.special_id("the") is None
    assert smollm2.chat_template == reference.chat_template


def test_a_byte_without_a_token_is_named(smollm2: Tokenizer) -> None:
    with pytest.raises(PromptError) as caught:
        smollm2.encode("fine, then \U00050000")
    assert str(caught.value) == (
        "prompt: '\\U00050000' is not allowed; the vocabulary has no token for its"
        " byte 0xf1"
    )


@pytest.mark.parametrize("text", [*TEXTS, "<s>", "</s> <unk>"])
def test_sentencepiece(sentencepiece_path: Path, text: str) -> None:
    tokenizer = load_tokenizer(sentencepiece_path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_path))
    ids = theirs.encode(text)
    assert tokenizer.encode(text, bos=False) == ids
    assert tokenizer.encode(text) == [theirs.bos_id(), *ids]
    assert tokenizer.decode(tokenizer.encode(text)) == theirs.decode(ids) == text
    assert tokenizer.vocab_size == theirs.vocab_size()


def test_sentencepiece_special_tokens(sentencepiece_path: Path) -> None:
    tokenizer = load_tokenizer(sentencepiece_path)
    assert (tokenizer.bos_id, set(tokenizer.eos_ids)) == (1, {2})
    assert tokenizer.special_id("<s>") == 1
    assert tokenizer.special_id("</s>") == 2
    assert tokenizer.special_id("no such piece") is None
    assert tokenizer.special_id("e") is None
    hello = tokenizer.encode("Hello", bos=False)
    assert tokenizer.decode([1, *hello, 2, tokenizer.vocab_size + 5]) == "Hello"
    assert tokenizer.decode(tokenizer.encode("broken \udcff")) == "broken ?"


@pytest.fixture(scope="module")
def llama3_encoding() -> tiktoken.Encoding:
    """TOKENS, with transformers' writing of Llama 3's pattern."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    return tiktoken.Encoding(
        "reference",
        pat_str=TikTokenConverter().pattern,
        mergeable_ranks={token: rank for rank, token in enumerate(TOKENS)},
        special_tokens={},
    )


def test_tiktoken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama3_encoding: tiktoken.Encoding
) -> None:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    # Without it tiktoken keeps a copy of what it read, under the file's path.
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    path = write_tiktoken(tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(path)
    converted = TikTokenConverter(vocab_file=str(path)).converted()
    for text in [*TEXTS, "<|eot_id|>", "Hello the user 12345"]:
        ids = tokenizer.encode(text, bos=False)
        assert ids == llama3_encoding.encode_ordinary(text)
        assert ids == converted.encode(text).ids
        assert tokenizer.encode(text) == [len(TOKENS), *ids]
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tiktoken_special_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tiktoken(tmp_path / "tokenizer.model"))
    size = len(TOKENS)
    assert tokenizer.vocab_size == size + 256
    # Llama 3's 128000, 128001, 128006, 128007 and 128009.
    assert tokenizer.special_id("<|begin_of_text|>") == tokenizer.bos_id == size
    assert tokenizer.special_id("<|end_of_text|>") == size + 1
    assert tokenizer.special_id("<|start_header_id|>") == size + 6
    assert tokenizer.special_id("<|end_header_id|>") == size + 7
    assert tokenizer.special_id("<|eot_id|>") == size + 9
    assert tokenizer.special_id("<|im_start|>") is None
    assert tokenizer.eos_ids == {size + 1, size + 8, size + 9}
    assert tokenizer.decode([size, *b"Hi", size + 9, size + 999]) == "Hi"
    assert tokenizer.decode(b"\xe6\xbc") == "\N{REPLACEMENT CHARACTER}"


def test_gguf_with_gpt2_splitting(tmp_path: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    tokens, merges = gguf_vocabulary()
    theirs = ByteLevelBPETokenizer(
        vocab={token: id for id, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in merges],
    )
    tokenizer = load_tokenizer(write_gguf(tmp_path / "model.gguf"))
    for text in TEXTS:
        assert tokenizer.encode(text) == theirs.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("pre", ["llama-bpe", "llama3", "llama-v3"])
def test_gguf_with_llama3_splitting(
    tmp_path: Path, llama3_encoding: tiktoken.Encoding, pre: str
) -> None:
    size = len(TOKENS)
    # No merge leads to " Hel": as with Llama 3, it is a token where it is a word.
    tokens = [*gguf_vocabulary()[0], gpt2_text(b" Hel"), *SPECIAL]
    path = write_gguf(
        tmp_path / "model.gguf", pre=pre, tokens=tokens, bos_token_id=size + 1
    )
    tokenizer = load_tokenizer(path)
    for text in TEXTS:
        expected = llama3_encoding.encode_ordinary(text)
        assert tokenizer.encode(text) == [size + 1, *expected]
    assert tokenizer.encode(" Hel", bos=False) == [size]
    assert tokenizer.eos_ids == {size + 2}


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe"])
def test_gguf_says_whether_a_text_has_a_start(
    tmp_path: Path, pre: str, add: bool
) -> None:
    tokenizer = load_tokenizer(
        write_gguf(
            tmp_path / "model.gguf", pre=pre, add_bos_token=add, bos_token_id=258
        )
    )
    assert tokenizer.bos_id == (258 if add else None)
    assert tokenizer.encode("a") == ([258, ord("a")] if add else [ord("a")])
    assert tokenizer.encode("a", bos=False) == [ord("a")]


def test_gguf_tokens_of_every_kind(tmp_path: Path) -> None:
    size = len(TOKENS)
    tokens = [*gguf_vocabulary()[0], "<tool>", "<pad>", "<pad>", *SPECIAL]
    kinds = [TokenType.USER_DEFINED, TokenType.UNUSED, TokenType.UNUSED]
    types = [*[TokenType.NORMAL] * size, *kinds, *[TokenType.CONTROL] * 2]
    path = write_gguf(
        tmp_path / "model.gguf", tokens=tokens, types=types, eos_token_id=7
    )
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size == size + 5
    assert tokenizer.encode("x<tool>y") == [ord("x"), size, ord("y")]
    assert tokenizer.decode([ord("x"), size, size + 1, size + 3]) == "x<tool>"
    assert tokenizer.special_id("<tool>") is None
    assert tokenizer.encode("<pad>") == list(b"<pad>")
    assert tokenizer.eos_ids == {7, size + 4}


def test_needs_no_torch() -> None:
    module = "llama_perf.checkpoints.tokenizers.chat"
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert done.returncode == 0

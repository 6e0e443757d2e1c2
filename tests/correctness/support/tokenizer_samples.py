"""Tokenizers' files for the tests, and transformers' reading of the real one."""

import base64
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tiktoken
from gguf import GGUFWriter, TokenType

from llama_perf.checkpoints.tokenizers.files import load_tokenizer
from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer
from scripts.doc_tables.smollm2 import smollm2_path

MERGES = [
    *((b"t", b"h"), (b"th", b"e"), (b" ", b"the"), (b"i", b"n"), (b"in", b"g")),
    *((b"e", b"r"), (b"u", b"s"), (b"us", b"er"), (b"1", b"2"), (b"12", b"3")),
    *((b"\n", b"\n"), (b" ", b" "), (b"  ", b"  "), (b"l", b"l"), (b"H", b"e")),
    *((b"He", b"ll"), (b"Hell", b"o")),
]
TOKENS = [bytes([byte]) for byte in range(256)] + [a + b for a, b in MERGES]
SIZE = len(TOKENS)
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>"]


@cache
def smollm2() -> Tokenizer:
    """SmolLM2's tokenizer from its GGUF file."""
    return load_tokenizer(smollm2_path())


@cache
def smollm2_reference() -> Any:
    """transformers' tokenizer from the same GGUF file."""
    path = smollm2_path()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        # gguf takes three times as long to read a vocabulary from a memory map.
        patch.setattr(np, "memmap", lambda path, **_: np.fromfile(path, np.uint8))
        from tokenizers import pre_tokenizers
        from transformers import AutoTokenizer

        reference = AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True
        )
    # transformers leaves `tokenizer.ggml.pre` unread and splits as GPT-2 does; these
    # are the pre-tokenizers of SmolLM2's own tokenizer.json.
    digits = pre_tokenizers.Digits(individual_digits=True)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    return reference


@cache
def llama3_encoding() -> tiktoken.Encoding:
    """TOKENS with transformers' writing of Llama 3's pattern, and some special ones."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    marks = {"begin_of_text": 0, "start_header_id": 6, "end_header_id": 7, "eot_id": 9}
    return tiktoken.Encoding(
        "reference",
        pat_str=TikTokenConverter().pattern,
        mergeable_ranks={token: rank for rank, token in enumerate(TOKENS)},
        special_tokens={f"<|{name}|>": SIZE + id for name, id in marks.items()},
    )


@cache
def llama3() -> Tokenizer:
    """TOKENS as Llama 3's tokenizer."""
    with TemporaryDirectory() as folder:
        return load_tokenizer(write_tiktoken(Path(folder) / "tokenizer.model"))


def gpt2_text(token: bytes) -> str:
    """GPT-2's writing of bytes, by transformers."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return "".join(bytes_to_unicode()[byte] for byte in token)


def gguf_vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges as a GGUF file writes them."""
    tokens = [gpt2_text(token) for token in TOKENS]
    return tokens, [f"{gpt2_text(a)} {gpt2_text(b)}" for a, b in MERGES]


def write_gguf(path: Path, *, chat_template: str = "", **fields: Any) -> Path:
    """A GGUF of a vocabulary alone: TOKENS, then SPECIAL, and `fields`; "" is none."""
    tokens, merges = gguf_vocabulary()
    defaults = {"tokens": tokens + SPECIAL, "merges": merges}
    fields = {"model": "gpt2", "pre": "gpt-2", **defaults, **fields}
    ordinary = len(fields["tokens"]) - len(SPECIAL)
    kinds = [TokenType.NORMAL] * ordinary + [TokenType.CONTROL] * len(SPECIAL)
    writer = GGUFWriter(path, "llama")
    if chat_template:
        writer.add_chat_template(chat_template)
    add: dict[type, Any] = {bool: writer.add_bool, int: writer.add_uint32}
    add |= {str: writer.add_string, list: writer.add_array}
    for name, value in ({"token_type": kinds} | fields).items():
        if value != "":
            add[type(value)](f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def write_tiktoken(path: Path) -> Path:
    lines = (f"{base64.b64encode(t).decode()} {rank}" for rank, t in enumerate(TOKENS))
    path.write_text("\n".join(lines) + "\n")
    return path


def train_sentencepiece(folder: Path) -> Path:
    """A tiny model with Llama 2's settings: byte fallback, digits apart."""
    lines = [
        "the quick brown fox jumps over the lazy dog, 12 times in 345 days",
        "Hello world! What's the capital of France?",
        "[INST] Write def f(x): return x [/INST] <<SYS>> <</SYS>>",
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(20 * lines),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"

"""Tokenizers: text to token ids and back, found and read by what the files hold.

Knows sentencepiece (Llama 2), tiktoken (Llama 3) and GPT-2 style vocabularies in GGUF
files; no model's name, no chat templates and no torch. Reads no `tokenizer.json`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import sentencepiece

from llama_perf.checkpoints.tokenizers.gguf import (
    copy_tokenizer_fields,
    has_gguf_tokenizer,
    read_gguf_tokenizer,
)
from llama_perf.checkpoints.tokenizers.llama3 import read_tiktoken
from llama_perf.errors import TokenizerError

MAX_PADDING = 1024
"""Rows of a model's vocabulary without a token must be fewer than this."""

# Hugging Face's folders of Llama 3 keep Meta's file in `original`.
_NAMES = ("tokenizer.model", "original/tokenizer.model")
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s")


class Tokenizer(Protocol):
    """Text to token ids and back. No text is ever read as a special token."""

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""

    @property
    def bos_id(self) -> int | None:
        """The id put before a text, or None if this tokenizer puts none."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """The ids with which a model ends its text or its turn."""

    @property
    def chat_template(self) -> str | None:
        """The Jinja template stored along with the tokenizer, or None."""

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """The ids of `text`, after `bos_id` if there is one and `bos` is set."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens and padding of a vocabulary have none."""

    def special_id(self, text: str) -> int | None:
        """The id of the special token written `text`, or None."""


class SentencePieceTokenizer:
    """A `Tokenizer` from a sentencepiece model, such as Llama 2's."""

    chat_template: str | None = None

    def __init__(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        self._processor = processor
        self.vocab_size: int = processor.get_piece_size()
        # sentencepiece says -1 for none.
        bos, eos = processor.bos_id(), processor.eos_id()
        self.bos_id: int | None = None if bos < 0 else bos
        self.eos_ids: frozenset[int] = frozenset() if eos < 0 else frozenset({eos})

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """The ids of `text`, after `bos_id` if there is one and `bos` is set."""
        # A terminal's broken UTF-8 arrives as lone surrogates, which it refuses.
        ids: list[int] = self._processor.encode(text.encode(errors="replace"))
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens and padding of a vocabulary have none."""
        with_text = [id for id in ids if 0 <= id < self.vocab_size]
        return str(self._processor.decode(with_text))

    def special_id(self, text: str) -> int | None:
        """The id of the special token written `text`, or None."""
        id: int = self._processor.piece_to_id(text)
        return id if self._processor.is_control(id) else None


def find_tokenizer(path: Path) -> Path | None:
    """The tokenizer's file of a checkpoint, or None if it brings none.

    `path` is a folder, a `.gguf`, or another file of weights, whose tokenizer lies
    beside it. Raises TokenizerError for a damaged `.gguf`.
    """
    if path.is_file():
        if path.suffix == ".gguf":
            return path if has_gguf_tokenizer(path) else None
        path = path.parent
    for name in _NAMES:
        if (path / name).is_file():
            return path / name
    ggufs = list(path.glob("*.gguf"))
    if len(ggufs) == 1 and has_gguf_tokenizer(ggufs[0]):
        return ggufs[0]
    return None


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer's file, or the one in a folder.

    What the file holds decides: its first bytes tell the three formats apart. Raises
    TokenizerError.
    """
    if path.is_dir():
        path = _only_tokenizer(path)
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except FileNotFoundError:
        raise TokenizerError(f"{path}: no such file or folder") from None
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from None
    if start.startswith(b"GGUF"):
        return read_gguf_tokenizer(path)
    if _TIKTOKEN_LINE.match(start):
        return read_tiktoken(path)
    # The first field of a sentencepiece model, its list of pieces.
    if start.startswith(b"\n"):
        return _read_sentencepiece(path)
    raise TokenizerError(
        f"{path}: no tokenizer; allowed: a sentencepiece model, lines of base64 and"
        " rank as Llama 3 has them, a GGUF file"
    )


def copy_tokenizer(path: Path, folder: Path) -> None:
    """Put the tokenizer of the file `path` into `folder`, as `find_tokenizer` seeks it.

    A GGUF file's vocabulary goes into a `tokenizer.gguf` without the weights; any
    other file is copied as it is. Raises TokenizerError, or OSError in writing.
    """
    with path.open("rb") as file:
        gguf = file.read(4) == b"GGUF"
    if gguf:
        copy_tokenizer_fields(path, folder / "tokenizer.gguf")
    else:
        shutil.copyfile(path, folder / _NAMES[0])


def _only_tokenizer(folder: Path) -> Path:
    path = find_tokenizer(folder)
    if path is None:
        raise TokenizerError(
            f"{folder}: no tokenizer; allowed: a folder with {' or '.join(_NAMES)},"
            " or with one .gguf that holds a tokenizer"
        )
    return path


def _read_sentencepiece(path: Path) -> SentencePieceTokenizer:
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except RuntimeError:
        raise TokenizerError(
            f"{path}: a damaged or truncated sentencepiece model"
        ) from None
    return SentencePieceTokenizer(processor)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, source: str) -> None:
    """Raise TokenizerError naming `source` if it is not the model's tokenizer.

    Models pad their vocabulary to a multiple of up to 1024 (Megatron-LM's 128 rows for
    each of eight devices) or gain a few tokens in fine-tuning, while vocabularies of
    different tokenizers are thousands apart: so `vocab_size`, the model's, may exceed
    the tokenizer's by less than MAX_PADDING, and never fall short of it.
    """
    min_size = max(0, vocab_size - MAX_PADDING + 1)
    if not min_size <= tokenizer.vocab_size <= vocab_size:
        raise TokenizerError(
            f"{source}: a tokenizer of {tokenizer.vocab_size} tokens is not allowed for"
            f" a model of {vocab_size}; allowed: {min_size} to"
            f" {vocab_size} tokens"
        )

"""Tokenizers' files, found and read by what they hold.

Knows sentencepiece (Llama 2), tiktoken (Llama 3) and GPT-2 style vocabularies in GGUF
files, of which it proves that `tiktoken` merges in the same order; no model's name.
Reads no `tokenizer.json`, and no sentencepiece vocabulary in a GGUF.
"""

import base64
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

from gguf import GGUFValueType, GGUFWriter, TokenType
from gguf.vocab import bytes_to_unicode

from llama_perf.checkpoints.gguf_reader import read_container
from llama_perf.checkpoints.tokenizers.tokenizer import (
    LLAMA3_PATTERN,
    Tokenizer,
    byte_pair_tokenizer,
    sentencepiece_tokenizer,
)
from llama_perf.errors import SpecError, TokenizerError, UserError
from llama_perf.files import entries, is_absent, read_bytes
from llama_perf.strict_json import from_plain, record
from llama_perf.words import counted

# Rows of a model's vocabulary without a token must be fewer than this.
_MAX_PADDING = 1024
_N_SPECIAL = 256
# Ids of Llama 3, counted from the first of _N_SPECIAL special ones; `eom_id` came with
# 3.1, which left the others where they were.
_SPECIAL = {
    "<|begin_of_text|>": 0,
    "<|end_of_text|>": 1,
    "<|start_header_id|>": 6,
    "<|end_header_id|>": 7,
    "<|eom_id|>": 8,
    "<|eot_id|>": 9,
}
# Hugging Face's folders of Llama 3 keep Meta's file in `original`.
_NAMES = ("tokenizer.model", "original/tokenizer.model")
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s")


def find_tokenizer(path: Path) -> Path | None:
    """The tokenizer's file of a checkpoint, or None if it brings none.

    `path` is a folder, a `.gguf`, or another file of weights, whose tokenizer lies
    in the same folder. Raises TokenizerError for a damaged `.gguf`.
    """
    if not os.path.isdir(path):
        if path.suffix == ".gguf" and not is_absent(path):
            return path if _has_tokenizer(path) else None
        path = path.parent
    for name in _NAMES:
        if not is_absent(path / name):
            return path / name
    ggufs = [
        file for file in entries(path, error=TokenizerError) if file.suffix == ".gguf"
    ]
    return ggufs[0] if len(ggufs) == 1 and _has_tokenizer(ggufs[0]) else None


def tokenizer_of(checkpoint: Path, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of a checkpoint, None if it brings none; raises TokenizerError."""
    path = find_tokenizer(checkpoint)
    return None if path is None else load_tokenizer(path, vocab_size=vocab_size)


def load_tokenizer(path: Path, *, vocab_size: int | None = None) -> Tokenizer:
    """Read a tokenizer's file for a model of `vocab_size`.

    What the file holds decides: its first bytes tell the three formats apart. Models
    pad their vocabulary to a multiple of up to 1024 (Megatron-LM's 128 rows for each of
    eight devices) or gain a few tokens in fine-tuning, while vocabularies of different
    tokenizers are thousands apart: so `vocab_size` may exceed the tokenizer's by less
    than _MAX_PADDING, and never fall short of it. Raises TokenizerError.
    """
    tokenizer = _read(path)
    if vocab_size is not None:
        min_size = max(0, vocab_size - _MAX_PADDING + 1)
        if not min_size <= tokenizer.vocab_size <= vocab_size:
            raise TokenizerError(
                f"{path}: a tokenizer of {counted(tokenizer.vocab_size, 'token')} is"
                f" not allowed for a model of {vocab_size}; allowed: {min_size} to"
                f" {vocab_size} tokens"
            )
    return tokenizer


def _read(path: Path) -> Tokenizer:
    start = read_bytes(path, error=TokenizerError, most=4096)
    if start.startswith(b"GGUF"):
        return _read_gguf(path)
    if _TIKTOKEN_LINE.match(start):
        return _read_tiktoken(path)
    # The first field of a sentencepiece model, its list of pieces.
    if start.startswith(b"\n"):
        try:
            return sentencepiece_tokenizer(read_bytes(path, error=TokenizerError))
        # UnicodeDecodeError too, of a piece.
        except (RuntimeError, UnicodeError):
            damage = "a damaged or truncated sentencepiece model"
            raise TokenizerError(f"{path}: {damage}") from None
    raise TokenizerError(
        f"{path}: no tokenizer; allowed: a sentencepiece model, lines of base64 and"
        " rank as Llama 3 has them, a GGUF file"
    )


def copy_tokenizer(path: Path, folder: Path) -> None:
    """Put the tokenizer of the file `path` into `folder`, as `find_tokenizer` seeks it.

    A GGUF file's vocabulary goes into a `tokenizer.gguf` without the weights; any
    other file is copied as it is. Raises TokenizerError, or OSError in writing.
    """
    if read_bytes(path, error=TokenizerError, most=4) != b"GGUF":
        shutil.copyfile(path, folder / _NAMES[0])
        return
    stored, _ = read_container(path, "tokenizer.", error=TokenizerError)
    writer = GGUFWriter(folder / "tokenizer.gguf", "llama")
    for name, (value, types) in stored.items():
        # An empty list has no form there, and says as little as none.
        if value != []:
            inner = types[-1] if types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, value, types[0], sub_type=inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _read_tiktoken(path: Path) -> Tokenizer:
    """Llama 3's `tokenizer.model`: a line of `base64 rank` for each token.

    The file holds no special tokens: they follow its last rank, as in Meta's code.
    """
    lines = read_bytes(path, error=TokenizerError).splitlines()
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            shown = line[:40].decode(errors="replace")
            raise TokenizerError(
                f"{path}: line {number}: {shown!r} is not allowed; allowed: a token in"
                " base64, a space and its rank"
            ) from None
    first = len(ranks)
    if unused := set(range(first)).difference(ranks.values()):
        raise TokenizerError(
            f"{path}: damaged or truncated: of {first} tokens none has rank"
            f" {min(unused)}"
        )
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise TokenizerError(f"{path}: no token for the byte 0x{byte:02x}")
    return byte_pair_tokenizer(
        ranks,
        special={text: first + offset for text, offset in _SPECIAL.items()},
        pattern=LLAMA3_PATTERN,
        vocab_size=first + _N_SPECIAL,
        bos_id=first,
    )


_GPT2_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
# llama.cpp cuts out every digit, then applies GPT-2's pattern to each piece between.
# A piece ends at a digit, so there, as at the text's end, white space stays whole.
_SMOLLM_PATTERN = (
    r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?=\p{N})|\s+(?!\S)|\s+"
)
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_PATTERNS = {
    "gpt-2": _GPT2_PATTERN,
    "smollm": _SMOLLM_PATTERN,
    **dict.fromkeys(_LLAMA3, LLAMA3_PATTERN),
}
# GPT-2's writing of bytes.
_BYTES = {char: byte for byte, char in bytes_to_unicode().items()}
_FIELD = "tokenizer.ggml."
_END_FIELDS = ("eos_token_id", "eot_token_id", "eom_token_id")


@record
class _Fields:
    """The fields `tokenizer.ggml.*` that are read."""

    model: Literal["gpt2"]
    pre: Literal["gpt-2", "smollm", "llama-bpe", "llama3", "llama-v3"]
    tokens: list[str]
    merges: list[str]
    token_type: list[Literal[1, 2, 3, 4, 5]] | None = None
    add_bos_token: bool | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    eot_token_id: int | None = None
    eom_token_id: int | None = None

    def __post_init__(self) -> None:
        size = len(self.tokens)
        if self.token_type is not None and len(self.token_type) != size:
            raise TokenizerError(f"token_type: not one for each of {size} tokens")
        if self.add_bos and self.bos_token_id is None:
            raise TokenizerError("bos_token_id: the field is missing")
        for name in (*["bos_token_id"] * self.add_bos, *_END_FIELDS):
            id = getattr(self, name)
            if id is not None and not 0 <= id < size:
                raise SpecError(name, id, f"allowed: 0 to {size - 1}")

    @property
    def add_bos(self) -> bool:
        """Whether `bos_token_id` goes before a text."""
        added = self.add_bos_token
        return self.pre in _LLAMA3 if added is None else added


def _has_tokenizer(path: Path) -> bool:
    """Whether the GGUF file holds any tokenizer; raises TokenizerError."""
    stored, _ = read_container(path, _FIELD + "model", error=TokenizerError)
    # llama.cpp's two words for a model that works only on ids.
    return any(kind not in ("no_vocab", "none") for kind, _ in stored.values())


def _read_gguf(path: Path) -> Tokenizer:
    """Read the tokenizer of a GGUF file; raises TokenizerError."""
    stored, _ = read_container(path, "tokenizer.", error=TokenizerError)
    names = {field.name: _FIELD + field.name for field in fields(_Fields)}
    values = {name: stored[full][0] for name, full in names.items() if full in stored}
    source = f"{path}: tokenizer.ggml"
    file = from_plain(_Fields, values, source=source, error=TokenizerError)
    try:
        tokenizer = _tokenizer(file)
    except UserError as error:
        raise TokenizerError(f"{source}: {error}") from None
    template, _ = stored.get("tokenizer.chat_template", (None, []))
    ends = {getattr(file, name) for name in _END_FIELDS} - {None}
    return replace(
        tokenizer,
        eos_ids=tokenizer.eos_ids | ends,
        chat_template=template if isinstance(template, str) else None,
    )


def _tokenizer(file: _Fields) -> Tokenizer:
    types: Sequence[int] = file.token_type or [TokenType.NORMAL] * len(file.tokens)

    def of_type(*wanted: int) -> dict[str, int]:
        numbered = enumerate(zip(file.tokens, types, strict=True))
        return {text: id for id, (text, kind) in numbered if kind in wanted}

    normal = of_type(TokenType.NORMAL)
    special = of_type(TokenType.CONTROL, TokenType.UNKNOWN)
    parsed = of_type(TokenType.USER_DEFINED)
    ranks = {_token_bytes(text): id for text, id in normal.items()}
    used = len(types) - types.count(TokenType.UNUSED)
    if (distinct := len(ranks) + len(special) + len(parsed)) != used:
        raise TokenizerError(f"tokens: {used - distinct} of {used} stand there twice")
    if not ranks:
        raise TokenizerError(f"tokens: none of {used} is an ordinary one")
    # Llama 3's words are whole tokens even where no merges lead to them.
    _check_merges(file.merges, ranks, reach_all=file.pre not in _LLAMA3)
    return byte_pair_tokenizer(
        ranks,
        special,
        parsed,
        pattern=_PATTERNS[file.pre],
        vocab_size=len(file.tokens),
        bos_id=file.bos_token_id if file.add_bos else None,
    )


def _token_bytes(text: str) -> bytes:
    try:
        return bytes([_BYTES[char] for char in text])
    except KeyError:
        raise SpecError("tokens", text, "allowed: GPT-2's writing of bytes") from None


def _check_merges(
    merges: list[str], ranks: Mapping[bytes, int], *, reach_all: bool
) -> None:
    """Raise SpecError unless the order of merges is the order of ids.

    tiktoken has no list of merges: of all neighbours that form a token it joins those
    whose token has the least id. That is the same encoding if every merge makes a
    token, later merges later ones, and every token longer than a byte has its merge.
    """
    ids = [-1]
    for merge in merges:
        id = ranks.get(_token_bytes(merge.replace(" ", "", 1)))
        if id is None:
            raise SpecError("merges", merge, "allowed: two parts of a token")
        if id < ids[-1]:
            raise SpecError("merges", merge, "allowed: in the order of their tokens")
        ids.append(id)
    made = set(ids)
    for token, id in ranks.items():
        if reach_all and len(token) > 1 and id not in made:
            raise SpecError("tokens", token, "allowed: tokens that a merge makes")

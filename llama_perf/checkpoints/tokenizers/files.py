"""Tokenizers' files, found and read by what they hold.

Knows sentencepiece (Llama 2), tiktoken (Llama 3) and GPT-2 style vocabularies in GGUF
files; no model's name. Reads no `tokenizer.json`.
"""

import base64
import re
import shutil
from pathlib import Path

from llama_perf.checkpoints.tokenizers import gguf
from llama_perf.checkpoints.tokenizers.tokenizer import (
    LLAMA3_PATTERN,
    Tokenizer,
    byte_pair_tokenizer,
    sentencepiece_tokenizer,
)
from llama_perf.errors import TokenizerError

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
    if path.is_file():
        if path.suffix == ".gguf":
            return path if gguf.has_tokenizer(path) else None
        path = path.parent
    for name in _NAMES:
        if (path / name).is_file():
            return path / name
    ggufs = list(path.glob("*.gguf"))
    return ggufs[0] if len(ggufs) == 1 and gguf.has_tokenizer(ggufs[0]) else None


def load_tokenizer(path: Path, *, vocab_size: int | None = None) -> Tokenizer:
    """Read a tokenizer's file, or the one in a folder, for a model of `vocab_size`.

    What the file holds decides: its first bytes tell the three formats apart. Models
    pad their vocabulary to a multiple of up to 1024 (Megatron-LM's 128 rows for each of
    eight devices) or gain a few tokens in fine-tuning, while vocabularies of different
    tokenizers are thousands apart: so `vocab_size` may exceed the tokenizer's by less
    than _MAX_PADDING, and never fall short of it. Raises TokenizerError.
    """
    if path.is_dir():
        tokenizer_path = find_tokenizer(path)
        if tokenizer_path is None:
            raise TokenizerError(
                f"{path}: no tokenizer; allowed: a folder with {' or '.join(_NAMES)},"
                " or with one .gguf that holds a tokenizer"
            )
        path = tokenizer_path
    tokenizer = _read(path)
    if vocab_size is not None:
        min_size = max(0, vocab_size - _MAX_PADDING + 1)
        if not min_size <= tokenizer.vocab_size <= vocab_size:
            raise TokenizerError(
                f"{path}: a tokenizer of {tokenizer.vocab_size} tokens is not allowed"
                f" for a model of {vocab_size}; allowed: {min_size} to {vocab_size}"
                " tokens"
            )
    return tokenizer


def _read(path: Path) -> Tokenizer:
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from None
    if start.startswith(b"GGUF"):
        return gguf.read_tokenizer(path)
    if _TIKTOKEN_LINE.match(start):
        return _read_tiktoken(path)
    # The first field of a sentencepiece model, its list of pieces.
    if start.startswith(b"\n"):
        try:
            return sentencepiece_tokenizer(path.read_bytes())
        except RuntimeError:
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
    with path.open("rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    if is_gguf:
        gguf.copy_fields(path, folder / "tokenizer.gguf")
    else:
        shutil.copyfile(path, folder / _NAMES[0])


def _read_tiktoken(path: Path) -> Tokenizer:
    """Llama 3's `tokenizer.model`: a line of `base64 rank` for each token.

    The file holds no special tokens: they follow its last rank, as in Meta's code.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
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

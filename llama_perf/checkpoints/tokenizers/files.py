"""Tokenizers' files, found and read by what they hold.

Knows `tokenizer.json`, sentencepiece (Llama 2), tiktoken (Llama 3) and GGUF files, and
which of them is read where a folder has several; no model's name.
"""

import base64
import os
import re
import shutil
from pathlib import Path

from gguf import GGUFValueType, GGUFWriter

from llama_perf.checkpoints.gguf_reader import read_container
from llama_perf.checkpoints.tokenizers.gguf_vocabulary import has_tokenizer, read_gguf
from llama_perf.checkpoints.tokenizers.hugging_face import (
    BESIDE,
    read_tokenizer_json,
    with_what_lies_beside,
)
from llama_perf.checkpoints.tokenizers.tokenizer import (
    Tokenizer,
    sentencepiece_tokenizer,
    tiktoken_tokenizer,
)
from llama_perf.errors import TokenizerError
from llama_perf.files import entries, is_absent, read_bytes
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
# Hugging Face's own file comes first: it has the tokens that were added for chats. Its
# folders of Llama 3 keep Meta's file in `original`.
_NAMES = ("tokenizer.json", "tokenizer.model", "original/tokenizer.model")
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s")


def find_tokenizer(path: Path) -> Path | None:
    """The tokenizer's file of a checkpoint, or None if it brings none.

    `path` is a folder, a `.gguf`, or another file of weights, whose tokenizer lies
    in the same folder. Raises TokenizerError for a damaged `.gguf`.
    """
    if not os.path.isdir(path):
        if path.suffix == ".gguf" and not is_absent(path):
            return path if has_tokenizer(path) else None
        path = path.parent
    for name in _NAMES:
        if not is_absent(path / name):
            return path / name
    ggufs = [
        file for file in entries(path, error=TokenizerError) if file.suffix == ".gguf"
    ]
    return ggufs[0] if len(ggufs) == 1 and has_tokenizer(ggufs[0]) else None


def tokenizer_of(checkpoint: Path, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of a checkpoint, None if it brings none; raises TokenizerError."""
    path = find_tokenizer(checkpoint)
    return None if path is None else load_tokenizer(path, vocab_size=vocab_size)


def load_tokenizer(path: Path, *, vocab_size: int | None = None) -> Tokenizer:
    """Read a tokenizer's file for a model of `vocab_size`.

    What the file holds decides: its first bytes tell the formats apart. Models
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
        return read_gguf(path)
    if path.suffix == ".json" or start.lstrip().startswith(b"{"):
        return with_what_lies_beside(read_tokenizer_json(path), path.parent)
    if _TIKTOKEN_LINE.match(start):
        return with_what_lies_beside(_read_tiktoken(path), path.parent)
    # The first field of a sentencepiece model, its list of pieces.
    if start.startswith(b"\n"):
        try:
            pieces = sentencepiece_tokenizer(read_bytes(path, error=TokenizerError))
        # UnicodeDecodeError too, of a piece.
        except (RuntimeError, UnicodeError):
            damage = "a damaged or truncated sentencepiece model"
            raise TokenizerError(f"{path}: {damage}") from None
        return with_what_lies_beside(pieces, path.parent)
    raise TokenizerError(
        f"{path}: no tokenizer; allowed: a tokenizer.json, a sentencepiece model, lines"
        " of base64 and rank as Llama 3 has them, a GGUF file"
    )


def copy_tokenizer(path: Path, folder: Path) -> None:
    """Put the tokenizer of the file `path` into `folder`, as `find_tokenizer` seeks it.

    A GGUF file's vocabulary goes into a `tokenizer.gguf` without the weights; any
    other file is copied as it is, with what lies beside it. Raises TokenizerError, or
    OSError in writing.
    """
    start = read_bytes(path, error=TokenizerError, most=4096)
    if not start.startswith(b"GGUF"):
        is_json = path.suffix == ".json" or start.lstrip().startswith(b"{")
        shutil.copyfile(path, folder / _NAMES[0 if is_json else 1])
        for name in BESIDE:
            beside = path.parent / name
            if beside.is_dir():
                shutil.copytree(beside, folder / name)
            elif not is_absent(beside):
                shutil.copyfile(beside, folder / name)
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
    return tiktoken_tokenizer(
        ranks,
        {text: first + offset for text, offset in _SPECIAL.items()},
        vocab_size=first + _N_SPECIAL,
        bos_id=first,
    )

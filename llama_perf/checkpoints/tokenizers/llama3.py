"""Llama 3's `tokenizer.model`: a line of `base64 rank` for each token.

The file holds no special tokens: Llama 3's stand after its last rank, as in Meta's
code. Knows no other model that uses the format.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from llama_perf.checkpoints.tokenizers.byte_pairs import (
    LLAMA3_PATTERN,
    BytePairTokenizer,
    Vocabulary,
)
from llama_perf.errors import TokenizerError

N_SPECIAL = 256
"""Ids that Llama 3 keeps for special tokens, used or not."""

# Ids of Llama 3, counted from the first special one; `eom_id` came with 3.1, which
# left the others where they were.
_SPECIAL = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
}


def read_tiktoken(path: Path) -> BytePairTokenizer:
    """Read Llama 3's `tokenizer.model`; raises TokenizerError."""
    ranks = _ranks(path)
    first = len(ranks)
    special = {
        _SPECIAL.get(offset, f"<|special_{offset}|>"): first + offset
        for offset in range(N_SPECIAL)
    }
    return BytePairTokenizer(
        Vocabulary(ranks=ranks, special=special),
        pattern=LLAMA3_PATTERN,
        vocab_size=first + N_SPECIAL,
        bos_id=special["<|begin_of_text|>"],
    )


def _ranks(path: Path) -> dict[bytes, int]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from None
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        token, rank = _parse(line, where=f"{path}: line {number}")
        if token in ranks:
            raise TokenizerError(f"{path}: line {number}: the token {token!r} again")
        ranks[token] = rank
    known_ranks = set(ranks.values())
    for rank in range(len(ranks)):
        if rank not in known_ranks:
            raise TokenizerError(
                f"{path}: damaged or truncated: of {len(ranks)} tokens none has rank"
                f" {rank}"
            )
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise TokenizerError(f"{path}: no token for the byte 0x{byte:02x}")
    return ranks


def _parse(line: bytes, *, where: str) -> tuple[bytes, int]:
    try:
        token, rank = line.split()
        return base64.b64decode(token, validate=True), int(rank)
    except (ValueError, binascii.Error):
        shown = line[:40].decode(errors="replace")
        raise TokenizerError(
            f"{where}: {shown!r} is not allowed; allowed: a token in base64, a space"
            " and its rank"
        ) from None

"""Byte-pair encoding with `tiktoken`: text to ids and back.

Knows a table of tokens and ids; nothing of the file that it came from, of chat
templates or of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import tiktoken

from llama_perf.errors import PromptError

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Llama 3 splits text before it merges bytes."""

END_MARKS = frozenset(
    {"<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>"}
)
"""Special tokens with which a model ends its text, its turn or its message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Ids of tokens, by kind.

    `ranks` maps a token's bytes to its id, `special` the text of a special token to
    its id. Text never yields a special token. `parsed` are the exceptions: tokens
    that a model's author added to be found in text before anything else.
    """

    ranks: Mapping[bytes, int]
    special: Mapping[str, int]
    parsed: Mapping[str, int] = field(default_factory=dict)


class BytePairTokenizer:
    """A `Tokenizer` in which the order of token ids is also the order of merges."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        pattern: str,
        vocab_size: int,
        bos_id: int | None = None,
        eos_ids: Iterable[int] = (),
        chat_template: str | None = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.bos_id = bos_id
        special, parsed = vocabulary.special, vocabulary.parsed
        marks = {special[mark] for mark in END_MARKS if mark in special}
        self.eos_ids = frozenset({*eos_ids, *marks})
        self.chat_template = chat_template
        self._special = dict(special)
        self._with_text = {*vocabulary.ranks.values(), *parsed.values()}
        # tiktoken aborts at a byte without a token; past the vocabulary we find it.
        bytes_ = {bytes([byte]): vocab_size + byte for byte in range(256)}
        self._encoding = tiktoken.Encoding(
            "llama-perf",
            pat_str=pattern,
            mergeable_ranks={**bytes_, **vocabulary.ranks},
            special_tokens=dict(parsed),
        )

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """The ids of `text`, after `bos_id` if there is one and `bos` is set.

        Raises PromptError for a character that the vocabulary cannot write.
        """
        ids = self._encoding.encode(text, allowed_special="all", disallowed_special=())
        if max(ids, default=0) >= self.vocab_size:
            raise _no_token(text, byte=max(ids) - self.vocab_size)
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens and padding of a vocabulary have none."""
        with_text = [id for id in ids if id in self._with_text]
        return self._encoding.decode(with_text, errors="replace")

    def special_id(self, text: str) -> int | None:
        """The id of the special token written `text`, or None."""
        return self._special.get(text)


def _no_token(text: str, *, byte: int) -> PromptError:
    has_byte = (char for char in text if byte in char.encode(errors="replace"))
    char = next(has_byte, "\N{REPLACEMENT CHARACTER}")
    return PromptError(
        f"prompt: {char!r} is not allowed; the vocabulary has no token for its byte"
        f" 0x{byte:02x}"
    )

"""Tokenizers: text to token ids and back, with `sentencepiece` or `tiktoken`.

Knows tokens and their ids; nothing of files, of chat templates, of models or of torch.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass

import sentencepiece
import tiktoken

from llama_perf.errors import PromptError

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Llama 3 splits text before it merges bytes."""

# Special tokens with which a model ends its text, its turn or its message.
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizer:
    """Text to token ids and back. No text is ever read as a special token.

    Ids are below `vocab_size`. `bos_id` goes before a text, None if this tokenizer puts
    none; with one of `eos_ids` a model ends its text or its turn. `special` has the ids
    of special tokens; only ids in `with_text` have a text. `chat_template` is the Jinja
    template stored along with the tokenizer.
    """

    vocab_size: int
    bos_id: int | None
    eos_ids: frozenset[int]
    special: Mapping[str, int]
    with_text: Container[int]
    encode_text: Callable[[str], list[int]]
    decode_ids: Callable[[list[int]], str]
    chat_template: str | None = None

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """The ids of `text`, after `bos_id` if there is one and `bos` is set.

        Raises PromptError for a character that the vocabulary cannot write.
        """
        ids = self.encode_text(text)
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens and padding of a vocabulary have none."""
        return self.decode_ids([id for id in ids if id in self.with_text])


def sentencepiece_tokenizer(model: bytes) -> Tokenizer:
    """A tokenizer from a sentencepiece model, such as Llama 2's.

    Raises RuntimeError for damaged bytes.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = range(processor.get_piece_size())
    # sentencepiece says -1 for none.
    bos, eos = processor.bos_id(), processor.eos_id()
    return Tokenizer(
        vocab_size=len(pieces),
        bos_id=None if bos < 0 else bos,
        eos_ids=frozenset({eos} - {-1}),
        special={
            processor.id_to_piece(id): id for id in pieces if processor.is_control(id)
        },
        with_text=pieces,
        # A terminal's broken UTF-8 arrives as lone surrogates, which it refuses.
        encode_text=lambda text: processor.encode(text.encode(errors="replace")),
        decode_ids=processor.decode,
    )


def byte_pair_tokenizer(
    ranks: Mapping[bytes, int],
    special: Mapping[str, int],
    parsed: Mapping[str, int] | None = None,
    *,
    pattern: str,
    vocab_size: int,
    bos_id: int | None = None,
) -> Tokenizer:
    """A tokenizer in which the order of token ids is also the order of merges.

    `ranks` maps a token's bytes to its id, `special` the text of a special token to
    its id. Text never yields a special token. `parsed` are the exceptions: tokens
    that a model's author added to be found in text before anything else.
    """
    parsed = parsed or {}
    # tiktoken aborts at a byte without a token; past the vocabulary we find it.
    bytes_ = {bytes([byte]): vocab_size + byte for byte in range(256)}
    encoding = tiktoken.Encoding(
        "llama-perf",
        pat_str=pattern,
        mergeable_ranks={**bytes_, **ranks},
        special_tokens=dict(parsed),
    )

    def encode(text: str) -> list[int]:
        ids = encoding.encode(text, allowed_special="all", disallowed_special=())
        if (byte := max(ids, default=0) - vocab_size) >= 0:
            has_byte = (char for char in text if byte in char.encode(errors="replace"))
            char = next(has_byte, "\N{REPLACEMENT CHARACTER}")
            raise PromptError(
                f"prompt: {char!r} is not allowed; the vocabulary has no token for its"
                f" byte 0x{byte:02x}"
            )
        return ids

    return Tokenizer(
        vocab_size=vocab_size,
        bos_id=bos_id,
        eos_ids=frozenset(special[mark] for mark in _ENDS if mark in special),
        special=special,
        with_text={*ranks.values(), *parsed.values()},
        encode_text=encode,
        decode_ids=encoding.decode,
    )

"""Tokenizers: text to token ids and back, by the packages that know them.

`tokenizers`, `sentencepiece` and `tiktoken`. Knows tokens and their ids; nothing of
files, of models or of torch.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import sentencepiece
import tiktoken
from gguf.vocab import bytes_to_unicode
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel

from llama_perf.checkpoints.tokenizers.templates import ChatTemplate
from llama_perf.errors import PromptError, TokenizerError, UserError

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Llama 3 splits text before it merges bytes."""
BYTES = {char: byte for byte, char in bytes_to_unicode().items()}
"""GPT-2's writing of bytes: the character of each."""

# Special tokens with which a model ends its text, its turn or its message.
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>")


Found = Literal["special", "added", "none"]
"""Which tokens are found in a text before anything else: special ones and those that a
model's author added, the added ones alone, or none."""


class Encode(Protocol):
    """What a package makes of a text."""

    def __call__(self, text: str, *, found: Found) -> list[int]:
        """The ids of `text`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizer:
    """Text to token ids and back. No text is read as a special token unless asked.

    Ids are below `vocab_size`. `bos_id` goes before a text, None if this tokenizer puts
    none; with one of `eos_ids` a model ends its text or its turn. `special` has the ids
    of special tokens, `added` of those that a model's author added to be found in text
    before anything else. `chat_template` is the one stored along with the tokenizer.
    """

    vocab_size: int
    bos_id: int | None
    eos_ids: frozenset[int]
    special: Mapping[str, int]
    encode_text: Encode
    decode_ids: Callable[[list[int]], str]
    added: Mapping[str, int] = field(default_factory=dict)
    chat_template: ChatTemplate | None = None

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """The ids of `text`, after `bos_id` if there is one and `bos` is set.

        Raises PromptError for a character that the vocabulary cannot write.
        """
        ids = self.encode_part(text, found="added")
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def encode_part(self, text: str, *, found: Found) -> list[int]:
        """The ids of a part of a text, in which these tokens are found."""
        # A terminal's broken UTF-8 arrives as lone surrogates, which have no bytes.
        return self.encode_text(text.encode(errors="replace").decode(), found=found)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens and padding of a vocabulary have none."""
        return self.decode_ids(list(ids))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of `ids` as they come, in parts that end in no half character."""
        # Those since the last part, after those of the part before, on which the space
        # before a word may depend.
        seen: list[int] = []
        given, before = "", 0
        for id in ids:
            seen.append(id)
            text = self.decode(seen)
            # An unfinished character decodes to the replacement mark.
            if text.endswith("\N{REPLACEMENT CHARACTER}") or text == given:
                continue
            yield text[len(given) :]
            seen = seen[before:]
            given, before = self.decode(seen), len(seen)
        yield self.decode(seen)[len(given) :]


def ends_of(special: Mapping[str, int]) -> frozenset[int]:
    """The ids of special tokens that end a text or a turn by their name."""
    return frozenset(special[mark] for mark in _ENDS if mark in special)


def sentencepiece_tokenizer(model: bytes) -> Tokenizer:
    """A tokenizer from a sentencepiece model, such as Llama 2's.

    Raises RuntimeError for damaged bytes.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = range(processor.get_piece_size())
    # sentencepiece says -1 for none.
    bos, eos = processor.bos_id(), processor.eos_id()
    marks = {processor.id_to_piece(id): id for id in pieces if processor.is_control(id)}
    between = re.compile("|".join(map(re.escape, marks)) or "(?!)")

    def encode(text: str, *, found: Found) -> list[int]:
        ids: list[int] = []
        at = 0
        for mark in between.finditer(text) if found == "special" else ():
            ids += [*processor.encode(text[at : mark.start()]), marks[mark[0]]]
            at = mark.end()
        return [*ids, *processor.encode(text[at:])]

    return Tokenizer(
        vocab_size=len(pieces),
        bos_id=None if bos < 0 else bos,
        eos_ids=frozenset({eos} - {-1}),
        special=marks,
        encode_text=encode,
        decode_ids=lambda ids: processor.decode([id for id in ids if id in pieces]),
    )


def tiktoken_tokenizer(
    ranks: Mapping[bytes, int],
    special: Mapping[str, int],
    *,
    vocab_size: int,
    bos_id: int,
) -> Tokenizer:
    """Llama 3's tokenizer, in which the order of token ids is also that of merges.

    `ranks` maps a token's bytes to its id, `special` the text of a special token.
    Each byte has a token.
    """
    encoding = tiktoken.Encoding(
        "llama-perf",
        pat_str=LLAMA3_PATTERN,
        mergeable_ranks=dict(ranks),
        special_tokens=dict(special),
    )
    with_text = set(ranks.values())

    def encode(text: str, *, found: Found) -> list[int]:
        if found == "special":
            return encoding.encode(text, allowed_special="all")
        return encoding.encode_ordinary(text)

    return Tokenizer(
        vocab_size=vocab_size,
        bos_id=bos_id,
        eos_ids=ends_of(special),
        special=special,
        encode_text=encode,
        decode_ids=lambda ids: encoding.decode([id for id in ids if id in with_text]),
    )


@contextmanager
def backend_errors(source: str) -> Iterator[None]:
    """Raise TokenizerError that names `source` for what `tokenizers` raises."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of its Rust code is no Exception
        reason = str(error).removeprefix("Cannot instantiate Tokenizer from buffer: ")
        raise TokenizerError(
            f"{source}: damaged, or of a version that the package `tokenizers` does not"
            f" read: {reason}"
        ) from None


def backend_tokenizer(
    backend: Backend, *, bos_id: int | None, source: str
) -> Tokenizer:
    """A tokenizer of the `tokenizers` package, in which some tokens are special.

    `source` is named where it cannot encode a text. Raises TokenizerError.
    """
    ids = backend.get_vocab(with_added_tokens=True).values()
    if not ids:
        raise TokenizerError(f"{source}: the vocabulary is empty")
    tokens = backend.get_added_tokens_decoder()
    special = {token.content: id for id, token in tokens.items() if token.special}
    lacking: set[int] = set()
    if isinstance(backend.decoder, ByteLevel):
        missing = (c for c in BYTES if backend.token_to_id(c) is None)
        lacking = {BYTES[char] for char in missing}

    def encode(text: str, *, found: Found) -> list[int]:
        if lacking:
            _check_bytes(text, lacking)
        with backend_errors(source):
            if found == "none":
                return _encode_bare(backend, text)
            backend.encode_special_tokens = found != "special"
            return backend.encode(text, add_special_tokens=False).ids

    return Tokenizer(
        vocab_size=max(ids) + 1,
        bos_id=bos_id,
        eos_ids=ends_of(special),
        special=special,
        added={token.content: id for id, token in tokens.items() if not token.special},
        encode_text=encode,
        decode_ids=backend.decode,
    )


def _encode_bare(backend: Backend, text: str) -> list[int]:
    """The ids of `text`, in which no added token is found."""
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = [text]
    if backend.pre_tokenizer is not None:
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in backend.model.tokenize(word)]


def _check_bytes(text: str, lacking: set[int]) -> None:
    """Raise PromptError for a byte without a token, which would vanish in silence."""
    for char in text:
        for byte in char.encode():
            if byte in lacking:
                raise PromptError(
                    f"prompt: {char!r} is not allowed; the vocabulary has no token for"
                    f" its byte 0x{byte:02x}"
                )

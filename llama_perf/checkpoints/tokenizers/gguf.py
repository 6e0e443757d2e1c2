"""The GPT-2 style tokenizer inside a GGUF file.

Reads the vocabulary, its merges and the pre-tokenizer's name, and proves that
`tiktoken` merges by the same order. Knows no sentencepiece vocabulary in a GGUF.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

from gguf import GGUFValueType, GGUFWriter, TokenType

from llama_perf.checkpoints.gguf_reader import read_container
from llama_perf.checkpoints.tokenizers.tokenizer import (
    LLAMA3_PATTERN,
    Tokenizer,
    byte_pair_tokenizer,
)
from llama_perf.errors import RecordError, SpecError, TokenizerError, UserError
from llama_perf.strict_json import from_plain, record

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
# GPT-2's writing of bytes: printable Latin-1 as itself, the rest from U+0100.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + index): byte for index, byte in enumerate(_OTHERS)
}
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


def has_tokenizer(path: Path) -> bool:
    """Whether the GGUF file holds any tokenizer; raises TokenizerError."""
    stored, _ = read_container(path, _FIELD + "model", error=TokenizerError)
    # llama.cpp's two words for a model that works only on ids.
    return any(kind not in ("no_vocab", "none") for kind, _ in stored.values())


def read_tokenizer(path: Path) -> Tokenizer:
    """Read the tokenizer of a GGUF file; raises TokenizerError."""
    stored, _ = read_container(path, "tokenizer.", error=TokenizerError)
    names = {field.name: _FIELD + field.name for field in fields(_Fields)}
    values = {name: stored[full][0] for name, full in names.items() if full in stored}
    source = f"{path}: tokenizer.ggml"
    try:
        file = from_plain(_Fields, values, source=source)
        tokenizer = _tokenizer(file)
    except RecordError as error:
        raise TokenizerError(str(error)) from None
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


def copy_fields(path: Path, target: Path) -> None:
    """Write a GGUF file with only the fields `tokenizer.*`, without weights.

    Raises TokenizerError for a damaged `path`, OSError where `target` fails.
    """
    stored, _ = read_container(path, "tokenizer.", error=TokenizerError)
    writer = GGUFWriter(target, "llama")
    for name, (value, types) in stored.items():
        # An empty list has no form there, and says as little as none.
        if value != []:
            inner = types[-1] if types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, value, types[0], sub_type=inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

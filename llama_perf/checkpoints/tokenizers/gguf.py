"""The GPT-2 style tokenizer inside a GGUF file.

Reads the vocabulary, its merges and the pre-tokenizer's name, and proves that
`tiktoken` merges by the same order. Knows no sentencepiece vocabulary in a GGUF.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, GGUFWriter, TokenType

from llama_perf.checkpoints.gguf_reader import DAMAGED, read_container
from llama_perf.checkpoints.tokenizers.byte_pairs import (
    LLAMA3_PATTERN,
    BytePairTokenizer,
    Vocabulary,
)
from llama_perf.errors import TokenizerError

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
_PREFIX = "tokenizer."
_END_FIELDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def _gpt2_bytes() -> dict[str, int]:
    """GPT-2's writing of bytes: printable Latin-1 as itself, the rest from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    moved = {chr(0x100 + index): byte for index, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | moved


_BYTES = _gpt2_bytes()


def has_gguf_tokenizer(path: Path) -> bool:
    """Whether the GGUF file holds any tokenizer; raises TokenizerError."""
    kind = tokenizer_fields(path).get("tokenizer.ggml.model")
    # llama.cpp's two words for a model that works only on ids.
    return kind not in (None, "no_vocab", "none")


def read_gguf_tokenizer(path: Path) -> BytePairTokenizer:
    """Read the tokenizer of a GGUF file; raises TokenizerError."""
    file = _File(path=path, fields=tokenizer_fields(path))
    file.choice("model", ("gpt2",))
    pre = file.choice("pre", tuple(_PATTERNS))
    tokens = file.strings("tokens")
    vocabulary = _sorted_by_kind(file, tokens)
    # Llama 3's words are whole tokens even where no merges lead to them.
    _check_merges(file, vocabulary.ranks, reach_all=pre not in _LLAMA3)
    template = file.fields.get("tokenizer.chat_template")
    return BytePairTokenizer(
        vocabulary,
        pattern=_PATTERNS[pre],
        vocab_size=len(tokens),
        bos_id=_bos_id(file, len(tokens), default=pre in _LLAMA3),
        eos_ids=[
            file.token_id(name, len(tokens)) for name in _END_FIELDS if file.has(name)
        ],
        chat_template=template if isinstance(template, str) else None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """Typed access to the fields, by their names without `tokenizer.ggml.`."""

    path: Path
    fields: dict[str, Any]

    def error(self, name: str, value: object, allowed: str) -> TokenizerError:
        return TokenizerError(
            f"{self.path}: tokenizer.ggml.{name}: {value!r} is not allowed;"
            f" allowed: {allowed}"
        )

    def damaged(self, name: str, problem: str) -> TokenizerError:
        return TokenizerError(f"{self.path}: tokenizer.ggml.{name}: {problem}")

    def has(self, name: str) -> bool:
        return f"tokenizer.ggml.{name}" in self.fields

    def get(self, name: str) -> Any:
        if not self.has(name):
            raise self.damaged(name, "the field is missing")
        return self.fields[f"tokenizer.ggml.{name}"]

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        value = self.get(name)
        if value not in allowed:
            raise self.error(name, value, ", ".join(allowed))
        return str(value)

    def strings(self, name: str) -> list[str]:
        value = self.get(name)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.damaged(name, "not a list of texts")
        return value

    def token_id(self, name: str, vocab_size: int) -> int:
        value = self.get(name)
        if type(value) is not int or not 0 <= value < vocab_size:
            raise self.error(name, value, f"0 to {vocab_size - 1}")
        return value


def _sorted_by_kind(file: _File, tokens: list[str]) -> Vocabulary:
    kinds = file.get("token_type") if file.has("token_type") else [1] * len(tokens)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise file.damaged("token_type", f"not one for each of {len(tokens)} tokens")
    ranks: dict[bytes, int] = {}
    special: dict[str, int] = {}
    parsed: dict[str, int] = {}
    for id, (text, kind) in enumerate(zip(tokens, kinds, strict=True)):
        match kind:
            case TokenType.NORMAL:
                ranks[_token_bytes(file, text)] = id
            case TokenType.CONTROL | TokenType.UNKNOWN:
                special[text] = id
            case TokenType.USER_DEFINED:
                parsed[text] = id
            case TokenType.UNUSED:
                pass
            case _:
                raise file.error("token_type", kind, "1 to 5")
    used = len(kinds) - kinds.count(TokenType.UNUSED)
    if (distinct := len(ranks) + len(special) + len(parsed)) != used:
        raise file.damaged("tokens", f"{used - distinct} of {used} stand there twice")
    if not ranks:
        raise file.damaged("tokens", f"none of {used} is an ordinary one")
    return Vocabulary(ranks=ranks, special=special, parsed=parsed)


def _token_bytes(file: _File, text: str) -> bytes:
    try:
        return bytes([_BYTES[char] for char in text])
    except KeyError:
        raise file.error("tokens", text, "GPT-2's writing of bytes") from None


def _check_merges(file: _File, ranks: Mapping[bytes, int], *, reach_all: bool) -> None:
    """Raise TokenizerError unless the order of merges is the order of ids.

    tiktoken has no list of merges: of all neighbours that form a token it joins those
    whose token has the least id. That is the same encoding if every merge makes a
    token, later merges later ones, and every token longer than a byte has its merge.
    """
    last = -1
    made = set()
    for merge in file.strings("merges"):
        left, _, right = merge.partition(" ")
        id = ranks.get(_token_bytes(file, left + right))
        if id is None:
            raise file.error("merges", merge, "two parts of a token")
        if id < last:
            raise file.error("merges", merge, "merges in the order of their tokens")
        last = id
        made.add(id)
    for token, id in ranks.items():
        if reach_all and len(token) > 1 and id not in made:
            raise file.error("tokens", token, "tokens that a merge makes")


def _bos_id(file: _File, vocab_size: int, *, default: bool) -> int | None:
    add = file.get("add_bos_token") if file.has("add_bos_token") else default
    if not isinstance(add, bool):
        raise file.error("add_bos_token", add, "true, false")
    return file.token_id("bos_token_id", vocab_size) if add else None


def tokenizer_fields(path: Path) -> dict[str, Any]:
    """The fields `tokenizer.*` as Python's own values; raises TokenizerError."""
    return {name: value for name, value, _ in _fields(path)}


def copy_tokenizer_fields(path: Path, target: Path) -> None:
    """Write a GGUF file with only these fields, without weights.

    Raises TokenizerError for a damaged `path`, OSError where `target` fails.
    """
    fields = _fields(path)
    writer = GGUFWriter(target, "llama")
    for name, value, types in fields:
        # An empty list has no form there, and says as little as none.
        if value != []:
            inner = types[-1] if types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, value, types[0], sub_type=inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _fields(path: Path) -> list[tuple[str, Any, list[GGUFValueType]]]:
    reader = read_container(path, error=TokenizerError)
    try:
        return [
            (name, field.contents(), field.types)
            for name, field in reader.fields.items()
            if name.startswith(_PREFIX)
        ]
    except Exception:  # damaged bytes end in any of a dozen kinds of exception
        raise TokenizerError(f"{path}: {DAMAGED}") from None

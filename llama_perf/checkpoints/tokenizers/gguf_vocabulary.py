"""The tokenizer that a GGUF file holds: a GPT-2 style vocabulary.

Knows llama.cpp's fields and the pre-tokenizers that it names; no model's name. Reads no
sentencepiece vocabulary.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from gguf import TokenType
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from llama_perf.checkpoints.gguf_reader import read_container
from llama_perf.checkpoints.tokenizers.templates import ChatTemplate
from llama_perf.checkpoints.tokenizers.tokenizer import (
    BYTES,
    LLAMA3_PATTERN,
    Tokenizer,
    backend_tokenizer,
)
from llama_perf.errors import SpecError, TokenizerError, UserError
from llama_perf.strict_json import from_plain, record
from llama_perf.words import shown

_FIELD = "tokenizer.ggml."
_END_FIELDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
_ONLY_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    pieces = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([pieces, _ONLY_BYTES])


_PRE_TOKENIZERS: dict[str, pre_tokenizers.PreTokenizer] = {
    "gpt-2": _LEVEL,
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), _LEVEL]
    ),
    # Llama 3's with one digit at a time.
    "qwen2": _split(LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")),
    **dict.fromkeys(_LLAMA3, _split(LLAMA3_PATTERN)),
}


@record
class _Fields:
    """The fields `tokenizer.ggml.*` that are read."""

    model: Literal["gpt2"]
    pre: Literal["gpt-2", "smollm", "qwen2", "llama-bpe", "llama3", "llama-v3"]
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


def read_gguf(path: Path) -> Tokenizer:
    """Read the tokenizer of a GGUF file; raises TokenizerError."""
    stored, _ = read_container(path, "tokenizer.", error=TokenizerError)
    names = {field.name: _FIELD + field.name for field in fields(_Fields)}
    values = {name: stored[full][0] for name, full in names.items() if full in stored}
    source = f"{path}: tokenizer.ggml"
    file = from_plain(_Fields, values, source=source, error=TokenizerError)
    try:
        tokenizer = _tokenizer(file, source)
    except UserError as error:
        raise TokenizerError(f"{source}: {error}") from None
    ends = {getattr(file, name) for name in _END_FIELDS} - {None}
    return replace(
        tokenizer,
        vocab_size=len(file.tokens),
        eos_ids=tokenizer.eos_ids | ends,
        chat_template=_chat_template(stored, file, path),
    )


def _chat_template(
    stored: dict[str, Any], file: _Fields, path: Path
) -> ChatTemplate | None:
    name = "tokenizer.chat_template"
    if name not in stored:
        return None
    text, _ = stored[name]
    if not isinstance(text, str):
        raise TokenizerError(
            f"{path}: {name}: {shown(text)} is not allowed; allowed: text"
        )
    ids = {"bos_token": file.bos_token_id, "eos_token": file.eos_token_id}
    return ChatTemplate(
        source=f"{path}: {name}",
        named={"default": text},
        variables={
            name: file.tokens[id]
            for name, id in ids.items()
            if id is not None and 0 <= id < len(file.tokens)
        },
    )


def _tokenizer(file: _Fields, source: str) -> Tokenizer:
    types: Sequence[int] = file.token_type or [TokenType.NORMAL] * len(file.tokens)
    used = [
        (text, id, kind)
        for id, (text, kind) in enumerate(zip(file.tokens, types, strict=True))
        if kind != TokenType.UNUSED
    ]
    vocabulary = {text: id for text, id, _ in used}
    if len(vocabulary) != len(used):
        twice = len(used) - len(vocabulary)
        raise TokenizerError(f"tokens: {twice} of {len(used)} stand there twice")
    normal = [text for text, _, kind in used if kind == TokenType.NORMAL]
    if not normal:
        raise TokenizerError(f"tokens: none of {len(used)} is an ordinary one")
    for text in normal:
        if not BYTES.keys() >= set(text):
            raise SpecError("tokens", text, "allowed: GPT-2's writing of bytes")
    backend = Backend(_model(file, vocabulary))
    if file.pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _PRE_TOKENIZERS[file.pre]
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(
        [
            AddedToken(text, normalized=False, special=kind != TokenType.USER_DEFINED)
            for text, _, kind in used
            if kind != TokenType.NORMAL
        ]
    )
    bos_id = file.bos_token_id if file.add_bos else None
    return backend_tokenizer(backend, bos_id=bos_id, source=source)


def _model(file: _Fields, vocabulary: dict[str, int]) -> BPE:
    """The merges, in their order; raises SpecError for one that makes no token."""
    merges: list[tuple[str, str]] = []
    for merge in file.merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise SpecError("merges", merge, "allowed: two tokens that make a token")
        merges.append((left, right))
    # Llama 3's words are whole tokens even where no merges lead to them.
    return BPE(vocabulary, merges, ignore_merges=file.pre in _LLAMA3)

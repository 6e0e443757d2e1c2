"""Hugging Face's files of a tokenizer: `tokenizer.json`, and those that lie beside it.

`tokenizer.json` has the vocabulary, the added tokens and what goes before a text;
`tokenizer_config.json` names special tokens and has the chat template, for which
`chat_template.jinja` stands where it is there; `generation_config.json` has the ids
that end a text. They are read as transformers reads them, but contradictions are
refused. Knows no model's name.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from llama_perf.checkpoints.tokenizers.templates import ChatTemplate
from llama_perf.checkpoints.tokenizers.tokenizer import (
    Tokenizer,
    backend_errors,
    backend_tokenizer,
)
from llama_perf.errors import TokenizerError
from llama_perf.files import entries, is_absent, read_bytes, read_text
from llama_perf.strict_json import from_plain, parse_json, record
from llama_perf.words import counted, shown

CONFIG, OLDER_CONFIG = "tokenizer_config.json", "special_tokens_map.json"
JINJA, MORE_JINJA = "chat_template.jinja", "additional_chat_templates"
GENERATION = "generation_config.json"
BESIDE = (CONFIG, OLDER_CONFIG, JINJA, MORE_JINJA, GENERATION)
"""What may lie beside a tokenizer's file, and says more about it."""


@record
class _Token:
    """An added token as transformers writes it."""

    content: str
    lstrip: bool = False
    normalized: bool | None = None
    rstrip: bool = False
    single_word: bool = False
    special: bool = False

    def added(self) -> AddedToken:
        flags = {name: getattr(self, name) for name in _FLAGS}
        if self.normalized is None:
            flags["normalized"] = not self.special
        return AddedToken(self.content, special=self.special, **flags)


_FLAGS = ("lstrip", "normalized", "rstrip", "single_word")


@record
class _NumberedToken(_Token):
    """An added token in `tokenizer.json`."""

    id: int


@record
class _Template:
    name: str
    template: str


@record
class _Names:
    """The special tokens that have names, of which a template may use each."""

    bos_token: str | _Token | None = None
    eos_token: str | _Token | None = None
    unk_token: str | _Token | None = None
    sep_token: str | _Token | None = None
    pad_token: str | _Token | None = None
    cls_token: str | _Token | None = None
    mask_token: str | _Token | None = None


@record
class _Config(_Names):
    """The fields of `tokenizer_config.json` that are read."""

    added_tokens_decoder: dict[str, _Token] | None = None
    chat_template: str | list[_Template] | dict[str, str] | None = None


@record
class _Generation:
    """The field of `generation_config.json` that is read."""

    eos_token_id: int | list[int] | None = None


def read_tokenizer_json(path: Path) -> Tokenizer:
    """Read a `tokenizer.json` with what lies beside it; raises TokenizerError."""
    content = read_bytes(path, error=TokenizerError)
    fields = parse_json(content, source=str(path), error=TokenizerError)
    if not isinstance(fields, dict) or "model" not in fields:
        raise TokenizerError(f"{path}: the field 'model' is missing")
    with backend_errors(str(path)):
        backend = Backend.from_buffer(content)
    # A file may hold the settings of the training, which cut and pad what is encoded.
    backend.no_truncation()
    backend.no_padding()
    config = _read(_Config, path.parent / CONFIG)
    names = _names(config, path.parent)
    for token in fields.get("added_tokens") or []:
        source = f"{path}: added_tokens"
        added = from_plain(_NumberedToken, token, source=source, error=TokenizerError)
        _check_id(backend, added.content, added.id, source, "the vocabulary")
    source = f"{path.parent / CONFIG}: added_tokens_decoder"
    _add_tokens(backend, config.added_tokens_decoder or {}, source)
    for name in ("bos_token", "eos_token"):
        text = names.get(name)
        if text is not None and backend.token_to_id(text) is None:
            file = OLDER_CONFIG if getattr(config, name) is None else CONFIG
            raise TokenizerError(
                f"{path.parent / file}: {name}: {shown(text)} is not allowed; allowed:"
                f" a token of {path.name}"
            )
    _make_special(backend, set(names.values()))
    with backend_errors(str(path)):
        bos_id = _first_id(backend, path)
    tokenizer = backend_tokenizer(backend, bos_id=bos_id, source=str(path))
    if bos_id is not None and bos_id >= tokenizer.vocab_size:
        raise TokenizerError(
            f"{path}: post_processor: {bos_id} before a text is not allowed; allowed:"
            f" 0 to {tokenizer.vocab_size - 1}"
        )
    eos = names.get("eos_token")
    ends = {id for text, id in tokenizer.special.items() if text == eos}
    return replace(tokenizer, eos_ids=tokenizer.eos_ids | ends)


def with_what_lies_beside(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """`tokenizer` with the chat template and the ends of text that `folder` has.

    Raises TokenizerError.
    """
    config = _read(_Config, folder / CONFIG)
    source, named = f"{folder / CONFIG}: chat_template", _named(config.chat_template)
    if files := _template_files(folder):
        source = str(next(iter(files.values())))
        named = {
            name: read_text(path, error=TokenizerError) for name, path in files.items()
        }
    template = tokenizer.chat_template
    if named:
        variables = _names(config, folder)
        template = ChatTemplate(source=source, named=named, variables=variables)
    ends = _read(_Generation, folder / GENERATION).eos_token_id
    ids = [ends] if isinstance(ends, int) else ends or []
    for id in ids:
        if not 0 <= id < tokenizer.vocab_size:
            raise TokenizerError(
                f"{folder / GENERATION}: eos_token_id: {id} is not allowed; allowed: 0"
                f" to {tokenizer.vocab_size - 1}"
            )
    eos_ids = tokenizer.eos_ids.union(ids)
    return replace(tokenizer, chat_template=template, eos_ids=eos_ids)


def _read(kind: type[Any], path: Path) -> Any:
    """The fields of a record that a JSON file has; those of an absent file are None."""
    if is_absent(path):
        return kind()
    content = read_bytes(path, error=TokenizerError)
    found = parse_json(content, source=str(path), error=TokenizerError)
    if not isinstance(found, dict):
        raise TokenizerError(f"{path}: {shown(found)} is not allowed; allowed: a map")
    known = {name: found[name] for name in kind.__dataclass_fields__ if name in found}
    for value in known.values():
        # Older files name transformers' class in each token.
        if isinstance(value, dict):
            value.pop("__type", None)
    return from_plain(kind, known, source=str(path), error=TokenizerError)


def _names(config: _Config, folder: Path) -> dict[str, str]:
    """The special tokens that have names.

    Older folders name them in a file of its own, which the newer field replaced.
    """
    older = _Names()
    if config.added_tokens_decoder is None:
        older = _read(_Names, folder / OLDER_CONFIG)
    texts: dict[str, str] = {}
    for name in _Names.__dataclass_fields__:
        token = getattr(older, name) or getattr(config, name)
        if token is not None:
            texts[name] = token if isinstance(token, str) else token.content
    return texts


def _named(template: str | list[_Template] | dict[str, str] | None) -> dict[str, str]:
    match template:
        case None:
            return {}
        case str():
            return {"default": template}
        case list():
            return {one.name: one.template for one in template}
    return template


def _template_files(folder: Path) -> dict[str, Path]:
    """The files of chat templates by their names."""
    files: dict[str, Path] = {}
    if not is_absent(folder / JINJA):
        files["default"] = folder / JINJA
    if os.path.isdir(folder / MORE_JINJA):
        more = entries(folder / MORE_JINJA, error=TokenizerError)
        files |= {path.stem: path for path in more if path.suffix == ".jinja"}
    return files


def _check_id(
    backend: Backend, text: str, id: int | str, field: str, where: str
) -> None:
    """Raise TokenizerError unless the package gave a token the id that a file says."""
    if str(id) != str(found := backend.token_to_id(text)):
        raise TokenizerError(
            f"{field}: {shown(id)} is not allowed for {shown(text)}; allowed: {found},"
            f" its id in {where} or the next that is free"
        )


def _add_tokens(backend: Backend, tokens: Mapping[str, _Token], field: str) -> None:
    """Add tokens under their ids, or give those that are there other flags."""
    known = backend.get_added_tokens_decoder()
    for id, token in tokens.items():
        added = token.added()
        if not id.isdecimal() or known.get(int(id)) != added:
            backend.add_tokens([added])
            _check_id(backend, token.content, id, field, "tokenizer.json")


def _make_special(backend: Backend, texts: set[str]) -> None:
    """Make special what has a name as a special token."""
    known = backend.get_added_tokens_decoder()
    for token in known.values():
        if token.content in texts and not token.special:
            flags = {name: getattr(token, name) for name in _FLAGS}
            backend.add_tokens([AddedToken(token.content, special=True, **flags)])
    texts = texts - {token.content for token in known.values()}
    there = [text for text in sorted(texts) if backend.token_to_id(text) is not None]
    backend.add_tokens([AddedToken(text, special=True) for text in there])


def _first_id(backend: Backend, path: Path) -> int | None:
    """The id that the post-processor puts before a text, None without one.

    What it puts after a text, which is to be continued, is left out.
    """
    plain = backend.encode("a", add_special_tokens=False).ids
    ids = backend.encode("a").ids
    places = range(len(ids) - len(plain) + 1)
    at = next((at for at in places if ids[at : at + len(plain)] == plain), 0)
    if at > 1:
        raise TokenizerError(
            f"{path}: post_processor: {counted(at, 'token')} before a text are not"
            " allowed; allowed: one or none"
        )
    return ids[0] if at else None

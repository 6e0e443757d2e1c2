"""Chat templates: Jinja, rendered as transformers does, in a sandbox.

The sandbox has no files, no modules and no attributes of Python's own. What a template
raises becomes one line. Knows no tokenizer.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from types import FrameType
from typing import Any, NamedTuple

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from llama_perf.errors import TokenizerError
from llama_perf.words import shown


class Message(NamedTuple):
    """One turn of a conversation; the role is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTemplate:
    """A model's chat template, which may be one of several that have names.

    `source` is the file and the field it was read from. `variables` are texts that it
    may use, such as `bos_token`.
    """

    source: str
    named: Mapping[str, str]
    variables: Mapping[str, str]

    @property
    def text(self) -> str:
        """The template of a conversation without tools; raises TokenizerError."""
        if "default" not in self.named:
            raise TokenizerError(
                f"{self.source}: {shown(sorted(self.named))} is not allowed; allowed:"
                " names of which one is 'default'"
            )
        return self.named["default"]

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, up to where the assistant's answer begins.

        Raises TokenizerError with the template's own words, or for one without end.
        """
        text = self.text
        try:
            compiled = _compiled(text)
            with _bounded():
                parts = compiled.generate(
                    messages=[message._asdict() for message in messages],
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                    **self.variables,
                )
                written = _joined(parts)
            if written:
                return written
            problem = "the template writes nothing"
        except TemplateSyntaxError as error:
            problem = f"line {error.lineno}: {error.message}"
        except TemplateError as error:
            problem = str(error)
        except Exception as error:  # what an expression may raise in Python
            problem = f"{type(error).__name__}: {error}"
        raise TokenizerError(f"{self.source}: {problem}")


# No conversation that fits a model is as long, nor as much work.
_LONGEST = 10_000_000
_MOST_LINES = 5_000_000
_ENDLESS = "the template writes without end"


def _joined(parts: Iterable[str]) -> str:
    kept: list[str] = []
    size = 0
    for part in parts:
        kept.append(part)
        size += len(part)
        if size > _LONGEST:
            raise TemplateError(_ENDLESS)
    return "".join(kept)


@contextmanager
def _bounded() -> Iterator[None]:
    """Stop what runs inside after _MOST_LINES lines of Python, which a loop repeats."""
    left = _MOST_LINES

    def count(_frame: FrameType, _event: str, _argument: object) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise TemplateError(_ENDLESS)
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


class _Generation(Extension):
    """`{% generation %}`, which marks what a model is trained on: its text as it is."""

    tags = {"generation"}  # noqa: RUF012 - the base class has no ClassVar

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Namespace(Namespace):
    """Jinja's `namespace`, in which no name can pass for one of Python's own."""

    def __init__(*args: Any, **values: Any) -> None:
        own, *rest = args
        Namespace.__init__(own)
        for name, value in dict(*rest, **values).items():
            own[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"namespace: {name!r} begins with an underscore")
        super().__setitem__(name, value)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which no product takes all memory or time."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        # Its size before it is computed: characters, or the digits of a number.
        sizes = [len(v) if hasattr(v, "__len__") else abs(v) for v in (left, right)]
        if operator == "**" or max(sizes) > _LONGEST or sizes[0] * sizes[1] > _LONGEST:
            raise SecurityError(f"{operator}: the numbers are too large")
        return super().call_binop(context, operator, left, right)


@cache
def _compiled(text: str) -> Template:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": _Namespace,
    }
    return environment.from_string(text)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes what HTML does not take."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )

"""A torchao config in a row: a call such as `torchao:Int8WeightOnlyConfig(version=2)`.

The text is parsed and never evaluated, and nothing is imported: `quantize/own_configs`
builds the config where the row runs. Whitespace, quotes and the order of arguments make
no other text.
"""

import ast
import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from llama_perf.errors import SpecError

TORCHAO = "torchao"
"""The package whose configs are found by their class's name alone."""
FORM = "package.module:Config(argument=value)"
_MODULE = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)*")
# The longest text, so that no parser is kept busy, and of a token the readable part.
_LONGEST, _READABLE = 400, 32
_VALUES = (
    "allowed: numbers, text, True, False, None, lists, tuples and dicts of them, calls"
    " such as PerRow(), members such as torch.int4"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigCall:
    """The config `name` of `module`, which is "torchao" for any module of torchao.

    `arguments` are the names and the values of its arguments, sorted by name; a value
    is written as Python writes it.
    """

    module: str
    name: str
    arguments: tuple[tuple[str, str], ...]

    @property
    def package(self) -> str:
        """The package that is to be installed."""
        return self.module.partition(".")[0]

    @property
    def text(self) -> str:
        """The one way in which such a call is written."""
        arguments = (f"{name}={value}" for name, value in self.arguments)
        return f"{self.module}:{self.name}({', '.join(arguments)})"

    @property
    def token(self) -> str:
        """A short name of it, made of class and arguments, which no other call has."""
        words = self.name.removesuffix("Config") or self.name
        words += "".join(f"-{name}-{value}" for name, value in self.arguments)
        readable = re.sub("[^a-z0-9]+", "-", words.lower())[:_READABLE].strip("-")
        return f"{readable}-{hashlib.sha256(self.text.encode()).hexdigest()[:6]}"


@lru_cache
def parse_call(text: str, field: str) -> ConfigCall:
    """The call in `text`; raises SpecError naming `field`."""
    module, _, call = text.partition(":")
    if not _MODULE.fullmatch(module) or len(text) > _LONGEST:
        raise SpecError(field, text, f"write {FORM}, at most {_LONGEST} characters")
    try:
        node = ast.parse(call.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise SpecError(field, text, f"write {FORM}: {reason}") from None
    if isinstance(node, ast.Name):
        raise SpecError(field, text, f"write its call: {module}:{node.id}()")
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise SpecError(field, text, f"write {FORM}")
    if node.args:
        value = ast.unparse(node.args[0])
        raise SpecError(field, text, f"{value} lacks its argument's name, as in {FORM}")
    try:
        _check_value(node)
    except ValueError as error:
        raise SpecError(field, text, str(error)) from None
    arguments = {word.arg: ast.unparse(word.value) for word in node.keywords}
    return ConfigCall(
        module=module,
        name=node.func.id,
        arguments=tuple((str(name), value) for name, value in arguments.items()),
    )


def _check_value(node: ast.expr) -> None:
    """Raise ValueError for what is no plain value; sort the arguments of calls."""
    match node:
        case ast.Constant(value=value):
            allowed = isinstance(value, str | int | float) or value is None
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value)):
            allowed = type(value) in (int, float)
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            allowed = True
            for part in parts:
                _check_value(part)
        case ast.Dict(keys=keys, values=parts):
            allowed = all(isinstance(key, ast.Constant) for key in keys)
            for part in parts:
                _check_value(part)
        case ast.Call(args=parts, keywords=words):
            allowed = _is_name(node.func) and all(word.arg for word in words)
            words.sort(key=lambda word: str(word.arg))
            for name, following in pairwise(word.arg for word in words):
                if name == following:
                    raise ValueError(f"the argument {name} is given twice")
            for part in (*parts, *(word.value for word in words)):
                _check_value(part)
        case _:
            allowed = isinstance(node, ast.Attribute) and _is_name(node)
    if not allowed:
        raise ValueError(f"{ast.unparse(node)} is no plain value; {_VALUES}")


def _is_name(node: ast.expr) -> bool:
    """Whether it is a public name, or several with dots between."""
    while isinstance(node, ast.Attribute) and not node.attr.startswith("_"):
        node = node.value
    return isinstance(node, ast.Name) and not node.id.startswith("_")

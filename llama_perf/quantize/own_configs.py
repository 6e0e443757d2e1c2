"""A config that a row writes as a call, built.

Only what the config's own package, torchao and torch call by a public name is looked
up, and only classes of the first two are called.
"""

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torchao.core.config import AOBaseConfig
from torchao.quantization import transform_module

from llama_perf.errors import NotRunnable, SpecError
from llama_perf.rows.config_call import TORCHAO, ConfigCall
from llama_perf.words import did_you_mean

_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)
CONFIG = re.compile(r"^class (\w+)\(.*\bAOBaseConfig\b", re.MULTILINE)
# torchao's configs would set the compiler's flags for every later row of the process;
# the engine sets them for all rows alike.
_SETS_FLAGS = "set_inductor_config"


def own_config(call: ConfigCall) -> AOBaseConfig:
    """Build the config of a call.

    Raises NotRunnable where its package is not installed, SpecError for a module, a
    class or an argument that is not there; what the package raises goes on.
    """
    kind = _config_class(call)
    values = _Values(call, sys.modules[kind.__module__])
    nodes = {name: _parsed(value) for name, value in call.arguments}
    named = {name: values.of(node) for name, node in nodes.items()}
    config: AOBaseConfig = values.called(kind, (), named)
    return config


def _refused(call: ConfigCall, reason: str) -> SpecError:
    return SpecError("quantization", call.text, reason)


def _parsed(value: str) -> ast.expr:
    return ast.parse(value, mode="eval").body


def _config_class(call: ConfigCall) -> Any:
    if call.module == TORCHAO:
        kind = _in_torchao(call.name, call)
        meant = did_you_mean(call.name, modules_of(CONFIG))
        missing = f"{meant}torchao has no {call.name}"
    else:
        inside = vars(_imported(call))
        kind = inside.get(call.name)
        known = [name for name, value in inside.items() if _is_config(value)]
        known = [name for name in known if inside[name] is not AOBaseConfig]
        allowed = f"allowed: {', '.join(known)}" if known else "it has no config"
        meant = did_you_mean(call.name, known)
        missing = f"{call.module} has no {call.name}; {meant}{allowed}"
    if kind is None:
        raise _refused(call, missing)
    if not _is_config(kind):
        raise _refused(call, f"{call.name} is no config, a class from AOBaseConfig")
    if kind not in transform_module._QUANTIZE_CONFIG_HANDLER:
        reason = f"no function quantizes by {call.name}: torchao's"
        raise _refused(call, f"{reason} register_quantize_module_handler adds one")
    return kind


def _is_config(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, AOBaseConfig)


def _imported(call: ConfigCall) -> ModuleType:
    if importlib.util.find_spec(call.package) is None:
        raise NotRunnable(f"{call.text}: the package {call.package} is not installed")
    try:
        return importlib.import_module(call.module)
    except ModuleNotFoundError as error:
        if not f"{call.module}.".startswith(f"{error.name}."):
            raise
        raise _refused(call, f"there is no module {error.name}") from None


def _in_torchao(name: str, call: ConfigCall) -> Any:
    """What `torchao.quantization` calls so, or else the only class; None without one.

    Modules are searched as text: to import them all takes seconds, and some cannot be
    imported.
    """
    public = vars(importlib.import_module("torchao.quantization"))
    if name in public:
        return public[name]
    modules = modules_of(_CLASS).get(name, ())
    if len(modules) > 1:
        forms = ", ".join(f"{module}:{call.name}" for module in modules)
        reason = f"torchao has {name} in {len(modules)} modules; say which: {forms}"
        raise _refused(call, reason)
    return vars(importlib.import_module(modules[0]))[name] if modules else None


@cache
def modules_of(pattern: re.Pattern[str]) -> dict[str, tuple[str, ...]]:
    """The modules of torchao that define a class, by its name."""
    spec = importlib.util.find_spec(TORCHAO)
    assert spec is not None, "torchao is imported"
    root = Path(str(spec.origin)).parent
    modules: dict[str, tuple[str, ...]] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        for name in pattern.findall(path.read_text(encoding="utf-8")):
            modules[name] = (*modules.get(name, ()), module)
    return modules


@dataclass(frozen=True, slots=True)
class _Values:
    """The values of a call's arguments; `home` is the module that has its config."""

    call: ConfigCall
    home: ModuleType

    def of(self, node: ast.expr) -> Any:
        """The value of an argument; raises SpecError for a name that means none."""
        match node:
            case ast.List(elts=parts):
                return [self.of(part) for part in parts]
            case ast.Tuple(elts=parts):
                return tuple(self.of(part) for part in parts)
            case ast.Dict(keys=keys, values=parts):
                names = [ast.literal_eval(key) for key in keys if key is not None]
                return dict(zip(names, map(self.of, parts), strict=True))
            case ast.Call(func=func, args=parts, keywords=words):
                kind = self._named(func)
                homes = sorted({self.call.package, TORCHAO})
                if not isinstance(kind, type) or _package(kind) not in homes:
                    reason = f"{ast.unparse(func)} is no class of {' or '.join(homes)}"
                    raise _refused(self.call, reason)
                named = {str(word.arg): self.of(word.value) for word in words}
                return self.called(kind, [self.of(part) for part in parts], named)
            case ast.Attribute():
                value = self._named(node)
                if not isinstance(value, Enum | torch.dtype):
                    reason = "is neither a dtype nor the member of an enum"
                    raise _refused(self.call, f"{ast.unparse(node)} {reason}")
                return value
        return ast.literal_eval(node)

    def called(self, kind: Any, values: Sequence[Any], named: dict[str, Any]) -> Any:
        """Call a class, whose arguments are checked before."""
        signature = inspect.signature(kind)
        known = signature.parameters
        anything = any(one.kind is one.VAR_KEYWORD for one in known.values())
        for name in named:
            if name not in known and not anything:
                allowed = f"allowed: {', '.join(known)}" if known else "it takes none"
                reason = f"{kind.__name__} has no argument {name}; "
                meant = did_you_mean(name, known)
                raise _refused(self.call, f"{reason}{meant}{allowed}")
        try:
            signature.bind(*values, **named)
        except TypeError as error:
            raise _refused(self.call, f"{kind.__name__}: {error}") from None
        if _SETS_FLAGS in known and _package(kind) == TORCHAO:
            named = {_SETS_FLAGS: False} | named
        return kind(*values, **named)

    def _named(self, node: ast.expr) -> Any:
        """What a public name means to the config's module, to torchao, or to torch."""
        if isinstance(node, ast.Attribute):
            owner = self._named(node.value)
            try:
                return getattr(owner, node.attr)
            except AttributeError:
                members = owner.__members__ if isinstance(owner, type(Enum)) else {}
                allowed = f"allowed: {', '.join(members)}" if members else ""
                reason = f"{ast.unparse(node.value)} has no {node.attr}; "
                reason += did_you_mean(node.attr, members or dir(owner)) + allowed
                raise _refused(self.call, reason.rstrip("; ")) from None
        assert isinstance(node, ast.Name), "a name is parsed as one"
        if node.id == torch.__name__:
            return torch
        found = vars(self.home).get(node.id)
        found = _in_torchao(node.id, self.call) if found is None else found
        if found is None:
            meant = did_you_mean(node.id, modules_of(_CLASS))
            reason = f"nothing is called {node.id}; {meant}"
            raise _refused(self.call, reason.rstrip("; "))
        return found


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]

"""The rules of the house that no linter checks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "llama_perf"
MODULES = sorted(
    path.relative_to(ROOT)
    for path in chain.from_iterable(
        (ROOT / folder).rglob("*.py") for folder in ("llama_perf", "scripts", "tests")
    )
)
KERNELS = Path("llama_perf/kernels/triton")
MAX_LINES = 350
MAX_PARAMETERS = 7
# Folders of tests that belong to no room. `ground` tests the modules beside the rooms.
OTHER_TESTS = {"ground", "scripts", "support", "closeness", "cuda"}


def functions(module: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The names of a function's parameters, without `self` and `cls`."""
    arguments = function.args
    names = [
        argument.arg
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    ]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def is_kernel(module: Path) -> bool:
    """Whether Triton compiles the module's functions. Launchers are plain Python."""
    return module.parent == KERNELS and not module.name.startswith("launch")


def test_no_module_is_too_long() -> None:
    lengths = {
        str(module): len((ROOT / module).read_text(encoding="utf-8").splitlines())
        for module in MODULES
    }
    too_long = {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
    assert not too_long


def test_no_function_takes_too_many_parameters() -> None:
    too_many = [
        (str(module), function.name, len(parameters(function)))
        for module in MODULES
        if not is_kernel(module)
        for function in functions(module)
        if len(parameters(function)) > MAX_PARAMETERS
    ]
    assert not too_many


def test_every_room_says_what_it_is() -> None:
    unnamed = {
        str(folder.relative_to(PACKAGE))
        for folder in {(ROOT / module).parent for module in MODULES}
        if folder.is_relative_to(PACKAGE)
        and not (
            (folder / "__init__.py").exists()
            and ast.get_docstring(
                ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
            )
        )
    }
    assert not unnamed


def test_the_tests_mirror_the_rooms() -> None:
    folders = {
        path.parent.relative_to(ROOT / "tests" / "correctness").parts[:1]
        for path in (ROOT / "tests" / "correctness").rglob("test_*.py")
    }
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {folder for (folder,) in folders} <= rooms | OTHER_TESTS

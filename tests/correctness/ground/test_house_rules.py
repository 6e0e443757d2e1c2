"""The rules of the house that no linter checks."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SOURCES = {
    path.relative_to(ROOT): path.read_text(encoding="utf-8")
    for folder in ("llama_perf", "scripts", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
KERNELS = Path("llama_perf/kernels/triton")
MAX_LINES = 350
MAX_PARAMETERS = 7
# Folders of tests that belong to no room. `ground` tests the modules beside the rooms.
OTHER_TESTS = {"ground", "scripts", "support", "closeness", "cuda"}


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The names of a function's parameters, without `self` and `cls`."""
    of = function.args
    names = [parameter.arg for parameter in (*of.posonlyargs, *of.args, *of.kwonlyargs)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def is_kernel(module: Path) -> bool:
    """Whether Triton compiles the module's functions. Launchers are plain Python."""
    return module.parent == KERNELS and not module.name.startswith("launch")


def test_no_module_is_too_long() -> None:
    lengths = {str(path): len(text.splitlines()) for path, text in SOURCES.items()}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}


def test_no_function_takes_too_many_parameters() -> None:
    too_many = [
        (str(module), node.name)
        for module, text in SOURCES.items()
        if not is_kernel(module)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and len(parameters(node)) > MAX_PARAMETERS
    ]
    assert not too_many


def test_every_room_says_what_it_is_and_the_tests_mirror_the_rooms() -> None:
    rooms = {path.parent for path in SOURCES if path.is_relative_to("llama_perf")}
    for room in rooms:
        text = SOURCES.get(room / "__init__.py", "")
        assert ast.get_docstring(ast.parse(text)), room
    tests = {
        path.relative_to("tests/correctness").parts[0]
        for path in SOURCES
        if path.is_relative_to("tests/correctness") and path.name.startswith("test_")
    }
    assert tests <= {room.name for room in rooms} | OTHER_TESTS

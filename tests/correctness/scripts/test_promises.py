"""docs/promises.md names tests that there are."""

import ast
import re

from tests.correctness.support.plugin_project import ROOT

NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def test_every_promise_has_its_test() -> None:
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    promises = [line for line in lines if not line.startswith(("| fault", "|---"))]
    assert promises
    for promise in promises:
        assert NAMED.search(promise), f"no test: {promise}"
    for path, name in NAMED.findall(text):
        source = (ROOT / "tests" / "correctness" / path).read_text(encoding="utf-8")
        defined = {
            node.name
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef)
        }
        assert name in defined, f"{path} has no {name}"

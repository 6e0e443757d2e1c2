"""Seconds of the tests by their folder, and the table of docs/architecture.md.

    make test TEST_ARGS=--junit-xml=.llama-perf/tests.xml
    python -m scripts.doc_tables tests --write

Two processes run the tests, so all of them take about half of the sum.
"""

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from scripts import ROOT
from scripts.doc_tables.document import Key, Place, Table

_FILE = ".llama-perf/tests.xml"
RESULTS = ROOT / _FILE
TESTS = ROOT / "tests" / "correctness"
_GROUPS: Mapping[Key, str] = {
    (f"`{folder}/`",): folder
    for folder in sorted({path.parent.name for path in TESTS.rglob("test_*.py")})
}


@cache
def times(results: Path) -> dict[str, list[float]]:
    """By folder the seconds of each test that ran, of a file that pytest wrote.

    Exits with a line if there is no such file.
    """
    seconds: dict[str, list[float]] = {}
    try:
        document = ElementTree.parse(results)
    except (OSError, ElementTree.ParseError) as error:
        sys.exit(f"{error}; first: make test TEST_ARGS=--junit-xml={_FILE}")
    for case in document.iter("testcase"):
        if case.find("skipped") is None:
            group = Path(case.attrib["file"]).parent.name
            seconds.setdefault(group, []).append(float(case.attrib["time"]))
    return seconds


def _draw(name: str) -> tuple[list[str], list[str]]:
    seconds = times(RESULTS).get(_GROUPS[name,], [])
    return [f"{len(seconds)}", f"{sum(seconds):.0f}"], []


TABLE = Table(
    place=Place("architecture.md", "tests"),
    headers=("folder", "tests that ran", "seconds"),
    keys=_GROUPS,
    draw=_draw,
)

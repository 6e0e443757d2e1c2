"""What others wrote in a file steers no terminal and is no HTML, in any format."""

from dataclasses import replace

import pytest

from llama_perf import report
from llama_perf.words import printable
from tests.correctness.support.record_samples import ENVIRONMENT, measured, report_of

HOSTILE = "\x1b[31m\u202e<script>alert(1)</script>"
RUN = report_of(
    measured(), environment=replace(ENVIRONMENT, torch=HOSTILE), note=HOSTILE
)


@pytest.mark.parametrize("name", report.names())
def test_what_others_wrote_steers_nothing(name: str) -> None:
    text = report.draw(RUN, name)
    assert "alert(1)" in text
    if name != "html":
        assert not set(text) & set("\x1b\u202e")
    if name in {"markdown", "html"}:
        assert "<script>alert" not in text


def test_lines_and_letters_stay() -> None:
    assert printable("a\tb\nç ▂ 漢") == "a\tb\nç ▂ 漢"
    assert printable("\x1b[2J\u2066\x9b") == r"\x1b[2J\u2066\x9b"

"""What a comment on a pull request says, and that it stays within GitHub's limit."""

import html
import re
from dataclasses import replace

import pytest

from llama_perf.report.comment import MOST_BYTES, body, code, plain
from llama_perf.results.run import Comparison, MetricChange, Report, Status, Verdict
from tests.correctness.support.record_samples import (
    CPU_ROW,
    ENVIRONMENT,
    OTHER,
    measured,
    report_of,
    unmeasured,
)

LINK = "https://github.com/o/r/actions/runs/1"


def slower(share: float, *, pairs: int | None = None) -> Comparison:
    change = MetricChange(
        metric="tok/s",
        baseline=100.0,
        current=100 * (1 + share),
        change=share,
        limit=0.05,
        worse=share < 0,
    )
    return Comparison(
        id=CPU_ROW.id,
        verdict=Verdict.SLOWER if share < 0 else Verdict.FASTER,
        reason="it is decided",
        failed=share < 0,
        changes=(change,),
        change_interval=(share - 0.01, share + 0.01) if pairs else None,
        pairs=pairs,
    )


def test_it_says_what_failed_by_how_much_and_where() -> None:
    report = report_of(
        measured(), comparisons=(slower(-0.2),), again=("llama-perf", "run")
    )
    lines = body(report, name="a", link=LINK).splitlines()
    assert lines[0] == "<!-- llama-perf: a -->"
    assert lines[3] == (
        "**1 row failed**: 1 row: 1 run, 0 NOT_RUN (1 SLOWER). "
        f"[The run and its files]({LINK})."
    )
    place = lines.index("#### Failed") + 2
    assert lines[place : place + 3] == [
        f"- **SLOWER** `{CPU_ROW.id}`: tok/s -20.0% (100.00 to 80.00, limit 5.0%)",
        "  - it is decided",
        f"  - again: `llama-perf run --row {CPU_ROW.id}`",
    ]
    assert "#### Better" not in lines
    assert re.search(
        r"^\| \S+ \| 100\.00 \| -20\.0% .*SLOWER \|$", "\n".join(lines), re.M
    )


def test_pairs_have_their_interval_and_a_gain_its_own_part() -> None:
    report = report_of(measured(), comparisons=(slower(-0.2, pairs=12),))
    text = body(report, name="a")
    assert "95 % interval of the speed -21.0% to -19.0% by 12 pairs\n" in text
    text = body(report_of(measured(), comparisons=(slower(0.1, pairs=8),)), name="a")
    assert "No row failed: " in text
    assert "#### Failed" not in text
    assert f"#### Better\n\n- **FASTER** `{CPU_ROW.id}`: tok/s +10.0%" in text


EVIL = "@octocat broke #12 | <img src=x> `a` [b](http://c) www.e.f *d* a\\|b\n\n# f $g$"


@pytest.mark.parametrize(
    "sign", ["<img", "@octocat", "broke #12", "http://", "www.", "](", "*d*", "`"]
)
def test_the_text_of_others_is_only_text(sign: str) -> None:
    assert sign not in plain(EVIL)
    assert "\n" not in plain(EVIL)
    # As a reader sees it.
    words = html.unescape(plain(EVIL)).replace("\u200b", "")
    assert words == " ".join(EVIL.split())


def test_names_and_reasons_break_no_line_and_no_cell() -> None:
    row = replace(CPU_ROW, name="a_b_c")
    environment = replace(ENVIRONMENT, device_name="| <b> @c")
    end = replace(slower(-0.2), id=row.id, reason=EVIL)
    report = report_of(measured(row), comparisons=(end,), environment=environment)
    text = body(report, name="a")
    header, _, cells = (line for line in text.splitlines() if line.startswith("|"))
    assert cells.count("|") == header.count("|")
    assert cells.startswith("| a&#95;b&#95;c | 100.00 | -20.0% | ")
    for sign in ("@c", "@octocat", "<img", "<b>"):
        assert sign not in text
    assert code("a`` b") == "``` a`` b ```"


def many(count: int, reason: str) -> Report:
    rows = [replace(OTHER, max_new_tokens=number + 2) for number in range(count)]
    ends = [replace(slower(-0.2), id=row.id, reason=reason) for row in rows]
    return report_of(*map(measured, rows), comparisons=tuple(ends))


@pytest.mark.parametrize(("count", "reason"), [(3, "ü" * 90_000), (900, "ü|" * 800)])
def test_a_comment_is_within_the_limit_and_says_what_it_leaves_out(
    count: int, reason: str
) -> None:
    text = body(many(count, reason), name="a", link=LINK)
    assert len(text.encode()) <= MOST_BYTES
    shown = text.count("- **SLOWER**")
    left = f"\n{count - shown} of these {count} rows are left out: a comment is full.\n"
    assert (left in text) == (shown < count)
    in_table = text.count(" SLOWER |")
    left = f"\n{count - in_table} of the table's {count} rows are left out: it is full."
    assert (left in text) == (in_table < count)
    assert shown == 3 or in_table < count
    assert text.count("<details>") == text.count("</details>")


def test_a_note_on_the_whole_run_is_shown() -> None:
    report = report_of(measured(), comparisons=(slower(-0.2),), note="made up: <all>")
    assert "\nmade up: &#60;all&#62;\n" in body(report, name="a")


def test_a_run_that_stopped_says_so() -> None:
    end = Comparison(
        id=CPU_ROW.id, verdict=Verdict.INVALID, reason="it broke", failed=True
    )
    broken = unmeasured(Status.INVALID, "it broke")
    text = body(report_of(broken, comparisons=(end,), selected=3), name="a")
    assert "(1 INVALID); stopped before 2 more." in text
    assert f"- **INVALID** `{CPU_ROW.id}`\n  - it broke\n" in text

"""`llama-perf run`: the table, the files it keeps, the comparison, the exit code."""

import re
import shlex
from typing import Any

from llama_perf.measure import timing
from llama_perf.results.run import Report, Status, Verdict
from llama_perf.run import session
from llama_perf.strict_json import from_json
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, Project

pytest_plugins = ["pytester"]


def test_rows_are_run_shown_and_printed_as_the_last_line(project: Project) -> None:
    words = project.run_words("--markdown", "table.md", "--results", "-")
    out, err = project.cli(*words)
    shown, before, last, _ = out.rsplit("\n", 3)
    assert re.search(
        r"^none +\d+\.\d\d +\d+\.\d +- .*NOT_COMPARED$", shown, re.MULTILINE
    )
    assert f"NOT_RUN {FP6}: scheme fp6 is not built on " in shown
    assert "weights: pth:tiny\n" in shown
    assert shown.endswith("3 rows: 2 run, 1 NOT_RUN (2 NOT_COMPARED)")
    assert "injected" not in shown
    assert before == ""
    first, begun, ended, *_ = err.splitlines()
    assert first == "every row: tiny.fp32.cpu.eager.new-4.samples-2"
    assert re.fullmatch(r"\[1/3\] none  started  0:0\d elapsed", begun)
    assert re.fullmatch(r"\[1/3\] none +\d+\.\d\d tok/s  \d+\.\d s", ended)
    assert len(err.splitlines()) == 1 + 2 * 3
    report = from_json(Report, last, source="stdout")
    assert [result.id for result in report.results] == [PLAIN, INT8, FP6]
    assert report.results[2].status is Status.NOT_RUN
    table = (project.path / "table.md").read_text(encoding="utf-8")
    assert table.startswith("### llama-perf: 3 rows: 2 run, 1 NOT_RUN")
    assert not (project.path / "-").exists()


def test_a_missing_baseline_fails_or_is_reported_and_recorded(project: Project) -> None:
    # What is saved under way is not taken for a baseline.
    reported = ("--on-missing-baseline=report", "--benchmark-save=some")
    project.run("--benchmark-compare", *reported, passed=2, skipped=1)
    assert set(project.verdicts().values()) == {Verdict.NO_BASELINE, Verdict.NOT_RUN}
    shown = project.run("--benchmark-compare", failed=2, skipped=1).stdout.str()
    assert f"\nNO_BASELINE {PLAIN}: no baseline for this device\n" in shown
    words = project.run_words("--compare")
    out, _ = project.cli(*words, code=1)
    advice = out[out.index("no baseline for this device (") :]
    assert "): 2 of 3 rows; record one with:\n" in advice
    assert advice in shown
    command = shlex.split(advice.split("record one with:\n")[1])
    project.cli(*command[command.index("baseline") :])
    # Rows of a millisecond are SAME, UNDECIDED or FASTER, as it happens.
    project.cli(*words, "--no-confirm", code=None)
    assert Verdict.NO_BASELINE not in project.verdicts().values()


def test_a_row_that_breaks_costs_no_other_row(project: Project) -> None:
    started: list[None] = []

    def second_breaks(*arguments: Any, **options: Any) -> Any:
        started.append(None)
        if len(started) != 2:
            return timing.measure_row(*arguments, **options)
        assert [result.id for result in project.report().results] == [PLAIN]
        raise RuntimeError("it broke\nin several lines")

    project.patch.setattr(session, "measure_row", second_breaks)
    shown, _ = project.cli(*project.run_words(), code=1)
    assert f"INVALID {INT8}: RuntimeError: it broke\n" in shown
    assert [result.status for result in project.report().results] == [
        *(Status.MEASURED, Status.INVALID, Status.NOT_RUN)
    ]
    # As if it were known: it says so, and when it works again.
    scheme = 'quantization = "int8wo"'
    project.edit(scheme, f'{scheme}\nupstream_issue = "pytorch/ao#2376"')
    started.clear()
    shown, _ = project.cli(*project.run_words())
    broken = "broken upstream, pytorch/ao#2376: RuntimeError: it broke"
    assert f"NOT_RUN {INT8}: {broken}\n" in shown
    assert "works again: " not in shown
    shown, _ = project.cli(*project.run_words())
    works = f"works again: {INT8} is marked as broken by pytorch/ao#2376, and ran\n"
    assert works in shown
    assert "works again: " not in shown.replace(works, "")

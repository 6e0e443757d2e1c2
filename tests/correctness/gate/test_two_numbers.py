"""A row's limit, and the loss found 9 times in 10: the same wherever they are told."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf import report
from llama_perf.cli import baseline as command
from llama_perf.gate.evidence import Confirmation, Trial
from llama_perf.gate.speed_baseline import SpeedBaseline
from llama_perf.gate.verdict import compare
from llama_perf.results import baselines
from llama_perf.rows.limit_overrides import Limits, ProjectLimits
from llama_perf.rows.spec import RowSpec
from llama_perf.run import read_options
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.record_samples import (
    CPU_ROW,
    ENVIRONMENT,
    INT8_CPU,
    OTHER,
    baseline_of_processes,
    measured,
    report_of,
    stored_in,
)

# As noisy as two shared cores.
SPEEDS: dict[RowSpec, tuple[float, ...]] = {
    CPU_ROW: (80.0, 100.0, 125.0, 95.0, 105.0),
    OTHER: (90.0, 120.0, 100.0, 110.0, 80.0),
    INT8_CPU: (150.0, 200.0, 270.0, 210.0, 160.0),
}
BOTH = re.compile(r"limit (\d+\.\d%), and a loss of (\d+\.\d%) is found 9 times in 10")


def told(lines: str, row: RowSpec) -> tuple[str, str]:
    """Both numbers, from the line on a row."""
    (numbers,) = (
        match.groups()
        for line in lines.splitlines()
        if line.lstrip().startswith(f"{row.id}: ") and (match := BOTH.search(line))
    )
    limit, found = numbers
    return limit, found


def in_a_run(folder: Path, row: RowSpec, project: ProjectLimits) -> tuple[str, str]:
    """The limit in the reason of a verdict, and the other number in the table."""
    stored = baselines.find(folder, ENVIRONMENT.device_key)
    assert stored is not None
    now = measured(row, tok_s=99.0)
    comparison = compare(
        now,
        SpeedBaseline(stored[1], ENVIRONMENT),
        project=project,
        unquantized=measured(CPU_ROW, tok_s=70.0),
    )
    (limit,) = re.findall(r"limit (\d+\.\d%)", comparison.reason)
    table = report.draw(report_of(now, comparisons=(comparison,)), "markdown")
    header, cells = (
        [cell.strip() for cell in line.split("|")]
        for line in table.splitlines()
        if line.startswith("| ")
        and ("found 9 in 10" in line or comparison.verdict.value in line)
    )
    return limit, cells[header.index("found 9 in 10")]


@pytest.mark.parametrize("least", ["the default", "the project's", "the row's"])
def test_both_numbers_are_the_same_everywhere(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch, least: str
) -> None:
    project: ProjectLimits = ()
    limits = Limits({"least_loss": 0.9})
    if least == "the project's":
        project = (("*", limits),)
    monkeypatch.setattr(read_options, "project_limits", lambda _path: project)
    speeds = {
        replace(row, limits=limits) if least == "the row's" else row: tok_s
        for row, tok_s in SPEEDS.items()
    }

    def record(*rows: RowSpec) -> str:
        results = [measured(row, tok_s=tok_s) for row in rows for tok_s in speeds[row]]
        monkeypatch.setattr(command, "_run", lambda *_: (ENVIRONMENT, results))
        return cli("baseline", "record", "--set", "cpu", *folder)[0]

    folder = ["--baselines", str(tmp_path)]
    recorded = record(*speeds)
    shown, _ = cli("baseline", "show", *folder)
    checked, _ = cli("baseline", "check", *folder, code=1)
    for row in speeds:
        numbers = in_a_run(tmp_path, row, project)
        assert told(recorded, row) == told(shown, row) == told(checked, row) == numbers
        assert (numbers[0] == "90.0%") == (least != "the default")
    # Noise is estimated from all rows of the file, as in a run.
    _, other, _ = speeds
    again = record(other)
    assert told(again, other) == told(recorded, other)
    assert f"{CPU_ROW.id}: " not in again


def test_a_fixed_limit_is_the_same_everywhere(tmp_path: Path, cli: CommandLine) -> None:
    # The row has five processes, and the one that it is compared with has two.
    speeds = SPEEDS | {CPU_ROW: SPEEDS[CPU_ROW][:2]}
    stored = baseline_of_processes(speeds)
    stored_in(tmp_path, stored)
    folder = ["--baselines", str(tmp_path)]
    fixed = "2 of the 3 processes from which noise is estimated"
    shown, _ = cli("baseline", "show", *folder)
    checked, _ = cli("baseline", "check", *folder, code=1)
    assert f"{INT8_CPU.id}: {fixed}, so the limit is fixed: 25.0%\n" in checked
    assert f"; {fixed}, so the limit is fixed: 25.0%\n" in shown
    comparison = compare(
        measured(INT8_CPU), SpeedBaseline(stored), unquantized=measured(CPU_ROW)
    )
    assert f", limit 25.0%); fixed limit: the baseline has {fixed}" in comparison.reason


def test_the_limit_of_a_confirmation_is_called_its_own() -> None:
    stored = SpeedBaseline(baseline_of_processes(SPEEDS))
    fresh = [Trial(row=measured(CPU_ROW, tok_s=20.0))] * 5
    slow = measured(CPU_ROW, tok_s=20.0)
    confirmation = Confirmation(fresh=fresh)
    reason = compare(slow, stored, confirmation=confirmation).reason
    assert len(re.findall(r"\blimit\b", reason)) == 1
    own = r"processes: 1\.000 \(-80\.\d%; their mean confirms a loss above \d+\.\d%\)"
    assert re.search(own, reason)

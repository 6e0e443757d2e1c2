"""Rows in pairs until their blocks decide: one row, or those of a comparison.

`run/paired.py` measures the blocks, `gate/pairs.py` judges them.
"""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from llama_perf.gate.blocks import BlockTest
from llama_perf.gate.pairs import (
    PairedRow,
    PairsGate,
    change_in_words,
    described,
    overall,
)
from llama_perf.gate.thresholds import found_in_words
from llama_perf.measure.environment import of_rows
from llama_perf.report.table import shown
from llama_perf.results.run import Comparison, Report, RowResult
from llama_perf.rows.spec import RowSpec
from llama_perf.run.display import Display
from llama_perf.run.options import RunRequest
from llama_perf.run.paired import OURS, PairedProcesses, Progress, Side
from llama_perf.run.results_file import ResultsFile
from llama_perf.run.worker_protocol import NOTE

# Processes of each side that decide whether a peak has grown.
_PEAKS = 3


def measure_until_decided(
    row: RowSpec, processes: PairedProcesses, gate: PairsGate, progress: Progress
) -> PairedRow:
    """Measure a row on both sides until its blocks have decided, or it broke."""
    pairs = processes.measure(row, progress)
    while gate.needs_block(pairs):
        test = gate.test(pairs)
        so_far = "" if test is None else f", {change_in_words(test)}"
        number = len(pairs.blocks) + 1

        def step(text: str, head: str = f"block {number}{so_far}") -> None:
            progress(text if text.startswith(NOTE) else f"{head}: {text}")

        processes.add_block(pairs, step)
    # One process may have a larger peak by chance; the median of three decides.
    if pairs.missed is None and pairs.peak(gate.limits_of(row)).worse:
        while pairs.missed is None and len(pairs.results["head"]) < _PEAKS:
            processes.measure_again(pairs, progress)
    return pairs


def compare_sides(
    row: RowSpec,
    gate: PairsGate,
    *,
    options: RunRequest,
    base: Side,
    head: Side = OURS,
    progress: Progress,
) -> PairedRow:
    """Measure one row in processes of its own until its blocks have decided."""
    with closing(
        PairedProcesses([row], options=options, base=base, head=head)
    ) as processes:
        return measure_until_decided(row, processes, gate, progress)


def with_row(
    report: Report,
    result: RowResult,
    comparison: Comparison,
    processes: PairedProcesses,
) -> Report:
    """The report with one more row, and the environments that both sides ran in."""
    rows = [*(one.row for one in report.results), result.row]
    known = processes.environments
    head = of_rows(known.get("head", report.environment), rows)
    base = of_rows(known.get("base", head), rows)
    return replace(
        report,
        environment=head,
        environment_changes=base.changes(head),
        results=(*report.results, result),
        comparisons=(*report.comparisons, comparison),
    )


class PairedRun:
    """The rows of a comparison by pairs, one after another, and their verdicts.

    `report` has the results and verdicts so far, and `file` has them after each row.
    """

    def __init__(
        self,
        report: Report,
        gate: PairsGate,
        processes: PairedProcesses,
        *,
        path: Path | None = None,
    ) -> None:
        self.report = report
        self._gate = gate
        self._processes = processes
        self.file = ResultsFile(path)
        self._tests: list[BlockTest] = []

    def run_row(self, row: RowSpec, display: Display) -> Comparison:
        """Measure the next row of the display's plan until it is decided."""
        with display.next() as running:
            pairs = measure_until_decided(
                row, self._processes, self._gate, running.step
            )
            result, comparison = self._gate.compare(pairs)
            figures, word, style = shown(result, comparison)
            test = self._gate.test(pairs)
            if pairs.missed is None and test is not None:
                self._tests.append(test)
                found = found_in_words(test.minimum_detectable)
                figures += f"  ({described(test)}; {found})"
            running.end(figures, word, style, counted=result.measurement is not None)
        self.report = replace(
            with_row(self.report, result, comparison, self._processes),
            overall=overall(self._tests) if len(self._tests) > 1 else None,
        )
        self.file.write(self.report)
        return comparison

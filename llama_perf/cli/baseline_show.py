"""`llama-perf baseline show | diff | check`: the stored baselines, for a reviewer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from llama_perf.errors import RecordError
from llama_perf.gate import baselines
from llama_perf.gate.review import differences, problems
from llama_perf.gate.speed import describe_speeds
from llama_perf.report.text import as_text
from llama_perf.results.baseline import Baseline
from llama_perf.results.run import Report, RowResult, Status
from llama_perf.rows import selection as row_sets
from llama_perf.run.revision import file_at, resolve
from llama_perf.strict_json import from_json


def show(arguments: argparse.Namespace) -> int:
    """Print each baseline as a table, and what its processes tell."""
    for key in _chosen(arguments):
        baseline = baselines.read(baselines.path_of(arguments.baselines, key))
        print(f"{key}: recorded {baseline.recorded}")
        if baseline.note:
            print(baseline.note)
        print(as_text(as_report(baseline)))
        print("".join(f"{line}\n" for line in describe_speeds(baseline)))
    return 0


def diff(arguments: argparse.Namespace) -> int:
    """Print what changed since a revision, or since one file; 0 in any case."""
    file = Path(arguments.old)
    commit = None if file.is_file() else resolve(arguments.old, field="diff")
    for key in _chosen(arguments):
        path = baselines.path_of(arguments.baselines, key)
        new = baselines.read(path)
        if commit is None:
            old: Baseline | None = baselines.read(file)
        else:
            text = file_at(commit, path)
            source = f"{arguments.old}:{path.name}"
            old = None if text is None else from_json(Baseline, text, source=source)
        print(f"{key}:")
        if old is None:
            print(f"  new: {len(new.rows)} rows, recorded {new.recorded}")
            continue
        for line in differences(old, new) or ["the same"]:
            print(f"  {line}")
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Read each baseline and print what is wrong with it; 1 where anything is.

    The published table is nobody's measurement and is only read.
    """
    known = {
        row.id: row for name in row_sets.set_names() for row in row_sets.load_set(name)
    }
    found = 0
    for key in _chosen(arguments):
        try:
            baseline = baselines.read(baselines.path_of(arguments.baselines, key))
        except RecordError as error:
            lines = [str(error)]
        else:
            reference = key == baselines.REFERENCE_KEY
            lines = [] if reference else list(problems(baseline, known))
        print(f"{key}: {'sound' if not lines else f'{len(lines)} problems'}")
        print("".join(f"  {line}\n" for line in lines), end="")
        found += len(lines)
    return 1 if found else 0


def _chosen(arguments: argparse.Namespace) -> Sequence[str]:
    keys = baselines.keys(arguments.baselines)
    if arguments.device is None:
        return keys
    if arguments.device not in keys:
        raise RecordError(
            f"device: {arguments.device!r} has no baseline in"
            f" {arguments.baselines}; allowed: {', '.join(keys) or 'none yet'}"
        )
    return [arguments.device]


def as_report(baseline: Baseline, others: Sequence[RowResult] = ()) -> Report:
    """A baseline as if it had been measured now, and what else the run had."""
    return Report(
        started=baseline.recorded,
        environment=baseline.environment,
        results=(
            *(
                RowResult(
                    id=row.id,
                    row=row.row,
                    status=Status.MEASURED,
                    measurement=row.measurement,
                )
                for row in baseline.rows
            ),
            *others,
        ),
    )

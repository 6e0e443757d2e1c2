"""A row in a process of its own.

What it shows then depends on no row before it, and a crash costs that row alone. Task
and result are JSON files; the result is there only where the row came to an end. Knows
no baseline.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict

from llama_perf.codec import STRICT, from_json, to_json, write_atomically
from llama_perf.records import Environment, RowResult, Status
from llama_perf.run_options import RunOptions, Slowdown
from llama_perf.spec import RowSpec

_TAIL_LINES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerTask:
    """What a worker is to run; paths are absolute.

    `devices` are those of all rows of the run, which decide on its environment.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    row: RowSpec
    devices: tuple[str, ...]
    checkpoints: str | None = None
    slowdowns: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerResult:
    """How the row ended there; `environment` is None where the process itself broke."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    result: RowResult
    environment: Environment | None


def run_in_process(
    row: RowSpec, *, options: RunOptions, devices: Iterable[str]
) -> WorkerResult:
    """Run one row in a fresh process.

    One that breaks is INVALID with the tail of what it said. An interrupt of this
    process ends the other one as well.
    """
    checkpoints = options.checkpoints
    task = WorkerTask(
        row=row,
        devices=tuple(sorted(set(devices))),
        checkpoints=None if checkpoints is None else str(checkpoints.absolute()),
        slowdowns=tuple((each.glob, each.share) for each in options.slowdowns),
    )
    with tempfile.TemporaryDirectory(prefix="llama-perf-") as name:
        folder = Path(name)
        task_file, result_file = folder / "task.json", folder / "result.json"
        task_file.write_text(to_json(task), encoding="utf-8")
        code, told = _run(worker_command(task_file, result_file))
        if not result_file.exists():
            reason = f"its process {_ending(code)}: {_tail(told)}"
            broken = RowResult(id=row.id, row=row, status=Status.INVALID, reason=reason)
            return WorkerResult(result=broken, environment=None)
        text = result_file.read_bytes()
    return from_json(WorkerResult, text, source=f"the process of {row.id}")


def worker_command(task: Path, result: Path) -> list[str]:
    """The command of a worker, for the very package that this process runs.

    `-P` keeps the working directory's modules out.
    """
    root = str(Path(__file__).resolve().parents[1])
    start = (
        f"import sys; sys.path.insert(0, {root!r});"
        " from llama_perf.worker import main; main(sys.argv[1:])"
    )
    return [sys.executable, "-P", "-c", start, str(task), str(result)]


def _run(command: list[str]) -> tuple[int, str]:
    """(exit code, stdout and stderr) of a command that ends with this process."""
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=told, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        told.seek(0)
        return code, told.read().decode(errors="replace")


def _ending(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"


def _tail(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-_TAIL_LINES:]) or "it said nothing"


def main(arguments: list[str]) -> None:
    """Run the task of one file and leave the result in the other."""
    task_file, result_file = map(Path, arguments)
    task = from_json(WorkerTask, task_file.read_bytes(), source=str(task_file))
    from llama_perf.run import Session

    options = RunOptions(
        checkpoints=None if task.checkpoints is None else Path(task.checkpoints),
        slowdowns=tuple(
            Slowdown(glob=glob, share=share) for glob, share in task.slowdowns
        ),
    )
    session = Session([task.row], options=options, devices=task.devices)
    result = session.run_row(task.row)
    write_atomically(
        result_file,
        to_json(WorkerResult(result=result, environment=session.environment)),
    )

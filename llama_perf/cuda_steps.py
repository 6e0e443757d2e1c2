"""Steps of a check in processes of their own, each within its share of a budget.

Knows commands and times, not what the steps check. Standard library alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO

# After an interrupt, to write what there is; then the process is killed.
GRACE_S = 8.0


class Told(Enum):
    """How a step ended."""

    OK = "ok"
    FAILED = "failed"
    OUT_OF_TIME = "out of time"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command: at most `limit_s`, and `keep_back_s` of the budget left after it.

    `log` is the file in the results' folder that holds its output; without one the
    output goes to the terminal. `shown` counts the last lines of it to print.
    """

    name: str
    command: Sequence[str]
    limit_s: float
    log: str | None = None
    keep_back_s: float = 0.0
    shown: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A step and how it ended; `reason` is given unless it went well."""

    name: str
    told: Told
    seconds: float
    reason: str = ""


class Runner:
    """Runs steps in `root` and keeps their logs in `out`; the clock starts here.

    `heading` is put before what they say; `variables` are added to their environment.
    """

    def __init__(self, *, root: Path, out: Path, budget_s: float) -> None:
        self.root = root
        self.out = out
        self.heading = ""
        self.variables: dict[str, str] = {}
        self.outcomes: list[Outcome] = []
        self._deadline = time.monotonic() + budget_s
        self._path = [str(root)]

    @property
    def left_s(self) -> float:
        """What is left of the budget."""
        return self._deadline - time.monotonic()

    @property
    def all_ok(self) -> bool:
        """Whether every step went well."""
        return all(outcome.told is Told.OK for outcome in self.outcomes)

    def add_to_path(self, folder: Path) -> None:
        """Let later steps import from `folder`, before what is installed."""
        self._path.insert(0, str(folder))

    def note(self, name: str, told: Told, reason: str) -> None:
        """An outcome without a process."""
        self._keep(Outcome(name=name, told=told, seconds=0.0, reason=reason))

    def run(self, step: Step) -> Outcome:
        """Run one step and say how it ended."""
        allowed = min(step.limit_s, self.left_s - step.keep_back_s - GRACE_S)
        if allowed <= 0:
            return self._keep(
                Outcome(
                    name=step.name,
                    told=Told.OUT_OF_TIME,
                    seconds=0.0,
                    reason="not started",
                )
            )
        print(f"\n== {step.name} (up to {allowed:.0f} s)", flush=True)
        start = time.monotonic()
        if step.log is None:
            code = self._wait(step.command, None, allowed)
        else:
            with (self.out / step.log).open("w", encoding="utf-8") as log:
                if self.heading:
                    log.write(f"{self.heading}\n\n")
                    log.flush()
                code = self._wait(step.command, log, allowed)
            _show(self.out / step.log, step.shown)
        told, reason = Told.OK, ""
        if code is None:
            told, reason = Told.OUT_OF_TIME, f"stopped after {allowed:.0f} s"
        elif code:
            told, reason = Told.FAILED, f"exit code {code}"
        seconds = time.monotonic() - start
        return self._keep(
            Outcome(name=step.name, told=told, seconds=seconds, reason=reason)
        )

    def run_together(self, steps: Sequence[Step]) -> None:
        """Run steps side by side, as many at a time as the machine has cores."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            # Exceptions are raised here.
            list(pool.map(self.run, steps))

    def ask(self, command: Sequence[str], *, limit_s: float) -> str | None:
        """None where `command` succeeds, else the last line it wrote on stderr."""
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=limit_s,
                env=self._environment(),
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {limit_s:.0f} s"
        if done.returncode == 0:
            return None
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"exit code {done.returncode}"

    def _keep(self, outcome: Outcome) -> Outcome:
        self.outcomes.append(outcome)
        print(_line(outcome), flush=True)
        if self.out.is_dir():
            # After each step: whoever stops the rest has what there is.
            text = f"{self.heading}\n\n{self.summary()}\n".lstrip()
            (self.out / "summary.txt").write_text(text, encoding="utf-8")
        return outcome

    def _environment(self) -> dict[str, str]:
        known = os.environ.get("PYTHONPATH")
        path = [*self._path, known] if known else self._path
        return {
            **os.environ,
            **self.variables,
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONUNBUFFERED": "1",
        }

    def _wait(
        self, command: Sequence[str], log: IO[str] | None, allowed_s: float
    ) -> int | None:
        """The exit code, None where the process had to be stopped."""
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=None if log is None else subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=allowed_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                _stop(process)

    def summary(self) -> str:
        """A line for each step."""
        return "\n".join(_line(outcome) for outcome in self.outcomes)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt, so that it writes what it has; then kill it and its children."""
    os.killpg(process.pid, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=GRACE_S)
    with suppress(ProcessLookupError):
        # The compiler's workers outlive an interrupt.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _show(path: Path, count: int) -> None:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines[max(len(lines) - count, 0) :]:
        print(f"  {line}", file=sys.stdout)


def _line(outcome: Outcome) -> str:
    reason = f" ({outcome.reason})" if outcome.reason else ""
    return f"{outcome.name:<16} {outcome.told.value}{reason}, {outcome.seconds:.0f} s"

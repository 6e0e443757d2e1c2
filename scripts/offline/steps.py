"""Steps in processes of their own, each within its share of a budget of time.

Knows commands and times, not what the steps check. Standard library only.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO

from scripts import ROOT

# Seconds for an interrupted process to write what it has; then it is killed.
GRACE_S = 8.0


class Status(Enum):
    """How a step ended."""

    OK = "ok"
    FAILED = "failed"
    OUT_OF_TIME = "out of time"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Step:
    """One command: it takes at most `limit_s` and leaves `keep_back_s` of the budget.

    Its output goes into the file `name`, or into `name`.txt where that has no suffix.
    The last `shown` lines of it are printed.
    """

    name: str
    command: Sequence[str]
    limit_s: float
    keep_back_s: float = 0.0
    shown: int = 40


@dataclass(frozen=True, slots=True)
class Outcome:
    """A step and how it ended; `reason` is empty if there is nothing to explain."""

    name: str
    status: Status
    reason: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.name:<16} {self.status.value}{reason}, {self.seconds:.0f} s"


class StepRunner:
    """Runs steps in the checkout and writes their logs into the folder `out`.

    The budget starts when the runner is made. `heading` stands at the top of each log
    but JSON; `variables` are added to the environment of each step, which imports from
    the folders `path` first. `signal` is the one that asked this process to end.
    """

    def __init__(self, out: Path, *, budget_s: float) -> None:
        self.out = out
        self.heading = ""
        self.variables: dict[str, str] = {}
        self.outcomes: list[Outcome] = []
        self.signal: signal.Signals | None = None
        self._deadline = time.monotonic() + budget_s
        self.path = [str(ROOT)]

    @property
    def left_s(self) -> float:
        """The rest of the budget."""
        return self._deadline - time.monotonic()

    @property
    def summary(self) -> str:
        """A line for each step."""
        return "\n".join(map(str, self.outcomes))

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let the first SIGINT or SIGTERM stop the steps and raise KeyboardInterrupt.

        Later ones are ignored: they would leave steps running that are being stopped.
        """

        def interrupt(number: int, _: object) -> None:
            self.signal = self.signal or signal.Signals(number)

        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, interrupt) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def note(
        self, name: str, status: Status, reason: str, seconds: float = 0.0
    ) -> Outcome:
        """Record how a step ended, or an outcome that needed no process."""
        outcome = Outcome(name, status, reason, seconds)
        self.outcomes.append(outcome)
        print(outcome, flush=True)
        # After each step, so that it is there if the rest is stopped.
        text = f"{self.heading}\n\n{self.summary}\n".lstrip()
        (self.out / "summary.txt").write_text(text, encoding="utf-8")
        return outcome

    def run(self, step: Step) -> Outcome:
        """Run one step and report how it ended."""
        self._raise_if_interrupted()
        allowed = min(step.limit_s, self.left_s - step.keep_back_s - GRACE_S)
        if allowed <= 0:
            return self.note(step.name, Status.OUT_OF_TIME, "not started")
        print(f"\n== {step.name} (up to {allowed:.0f} s)", flush=True)
        start = time.monotonic()
        path = self.out / (step.name if "." in step.name else f"{step.name}.txt")
        with path.open("w", encoding="utf-8") as log:
            if self.heading and path.suffix != ".json":
                print(f"{self.heading}\n", file=log, flush=True)
            code = self._execute(step.command, allowed, log)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in deque(lines, step.shown):
            print(f"  {line}")
        status, reason = Status.OK, ""
        if self.signal is not None:
            status = Status.INTERRUPTED
        elif code is None:
            status, reason = Status.OUT_OF_TIME, f"stopped after {allowed:.0f} s"
        elif code:
            status, reason = Status.FAILED, f"exit code {code}"
        outcome = self.note(step.name, status, reason, time.monotonic() - start)
        self._raise_if_interrupted()
        return outcome

    def run_together(self, steps: Sequence[Step]) -> None:
        """Run steps side by side, as many at a time as the machine has cores."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            # Exceptions are raised here.
            list(pool.map(self.run, steps))

    def ask(self, command: Sequence[str], *, limit_s: float) -> str | None:
        """None if `command` succeeds, else the last line that it wrote."""
        with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
            code = self._execute(command, limit_s, output)
            self._raise_if_interrupted()
            output.seek(0)
            lines = output.read().strip().splitlines()
        if code is None:
            return f"no answer within {limit_s:.0f} s"
        return (lines or [f"exit code {code}"])[-1] if code else None

    def _raise_if_interrupted(self) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt

    def _execute(
        self, command: Sequence[str], limit_s: float, output: IO[str]
    ) -> int | None:
        """The exit code, None if the process had to be stopped."""
        path = filter(None, [*self.path, os.environ.get("PYTHONPATH")])
        more = {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | self.variables | more,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if _ends_within(limit_s, process, lambda: self.signal is None):
            return process.wait()
        # Interrupted, it writes what it has.
        os.killpg(process.pid, signal.SIGINT)
        _ends_within(GRACE_S, process)
        # The compiler's workers outlive an interrupt.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def _ends_within(
    seconds: float,
    process: subprocess.Popen[bytes],
    waiting: Callable[[], bool] = lambda: True,
) -> bool:
    """Whether it does; it is not waited for, so its group's number stays its own."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    deadline = time.monotonic() + seconds
    while waiting() and time.monotonic() < deadline:
        if os.waitid(os.P_PID, process.pid, flags) is not None:
            return True
        time.sleep(0.05)
    return False

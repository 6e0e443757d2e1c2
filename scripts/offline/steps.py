"""Steps in processes of their own, each within its share of a budget of time.

Knows commands and times, not what the steps check. Standard library only.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO, NoReturn

# Seconds for an interrupted process to write what it has; then it is killed.
GRACE_S = 8.0


class Status(Enum):
    """How a step ended."""

    OK = "ok"
    FAILED = "failed"
    OUT_OF_TIME = "out of time"
    INTERRUPTED = "interrupted"


class Interrupted(BaseException):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def until_interrupted(work: Callable[[], int], *, name: str, then: str) -> int:
    """Run `work`; if SIGINT or SIGTERM ends it, print a line and return the exit code.

    `then` says what the user finds or does next.
    """
    try:
        with _interruptible():
            return work()
    except Interrupted as signalled:
        print(f"{name}: ended by {signalled}; {then}", file=sys.stderr)
        return signalled.exit_code


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise `Interrupted` at the first signal and ignore later ones.

    Otherwise a second Ctrl-C would leave steps running that are being stopped.
    """
    signals = (signal.SIGINT, signal.SIGTERM)

    def interrupt(number: int, _: object) -> NoReturn:
        for later in signals:
            signal.signal(later, signal.SIG_IGN)
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command: it takes at most `limit_s` and leaves `keep_back_s` of the budget.

    Its output goes into the file `log` in the folder of results, whose last `shown`
    lines are printed. Without `log` the output goes to the terminal.
    """

    name: str
    command: Sequence[str]
    limit_s: float
    log: str | None = None
    keep_back_s: float = 0.0
    shown: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A step and how it ended; `reason` is empty if there is nothing to explain."""

    name: str
    status: Status
    seconds: float
    reason: str = ""


class StepRunner:
    """Runs steps in the folder `root` and writes their logs into the folder `out`.

    The budget starts when the runner is made. `heading` stands at the top of each log;
    `variables` are added to the environment of each step.
    """

    def __init__(self, *, root: Path, out: Path, budget_s: float) -> None:
        self.root = root
        self.out = out
        self.heading = ""
        self.variables: dict[str, str] = {}
        self.outcomes: list[Outcome] = []
        self._deadline = time.monotonic() + budget_s
        self._path = [str(root)]
        self._running: set[subprocess.Popen[bytes]] = set()
        self._interrupted = False

    @property
    def left_s(self) -> float:
        """The rest of the budget."""
        return self._deadline - time.monotonic()

    @property
    def all_ok(self) -> bool:
        """Whether every step went well."""
        return all(outcome.status is Status.OK for outcome in self.outcomes)

    def add_to_path(self, folder: Path) -> None:
        """Let later steps import from `folder` first, before installed packages."""
        self._path.insert(0, str(folder))

    def note(self, name: str, status: Status, reason: str) -> Outcome:
        """Record an outcome that needed no process."""
        outcome = Outcome(name=name, status=status, seconds=0.0, reason=reason)
        return self._record(outcome)

    def run(self, step: Step) -> Outcome:
        """Run one step and report how it ended."""
        allowed = min(step.limit_s, self.left_s - step.keep_back_s - GRACE_S)
        if allowed <= 0:
            return self.note(step.name, Status.OUT_OF_TIME, "not started")
        print(f"\n== {step.name} (up to {allowed:.0f} s)", flush=True)
        start = time.monotonic()
        code, signalled = None, None
        try:
            code = self._logged(step, allowed)
        except Interrupted as caught:
            self._interrupted, signalled = True, caught
        # A signal may come before the log is there.
        if step.log is not None and (self.out / step.log).exists():
            _show(self.out / step.log, step.shown)
        status, reason = Status.OK, ""
        if self._interrupted:
            status = Status.INTERRUPTED
        elif code is None:
            status, reason = Status.OUT_OF_TIME, f"stopped after {allowed:.0f} s"
        elif code:
            status, reason = Status.FAILED, f"exit code {code}"
        seconds = time.monotonic() - start
        outcome = self._record(
            Outcome(name=step.name, status=status, seconds=seconds, reason=reason)
        )
        if signalled is not None:
            raise signalled
        return outcome

    def run_together(self, steps: Sequence[Step]) -> None:
        """Run steps side by side, as many at a time as the machine has cores."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                # Exceptions are raised here.
                list(pool.map(self.run, steps))
            except Interrupted:
                self._interrupted = True
                _stop(*self._running)
                raise

    def ask(self, command: Sequence[str], *, limit_s: float) -> str | None:
        """None if `command` succeeds, else the last line that it wrote to stderr."""
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

    def _record(self, outcome: Outcome) -> Outcome:
        self.outcomes.append(outcome)
        print(_line(outcome), flush=True)
        if self.out.is_dir():
            # After each step, so that it is there if the rest is stopped.
            text = f"{self.heading}\n\n{self.summary()}\n".lstrip()
            (self.out / "summary.txt").write_text(text, encoding="utf-8")
        return outcome

    def _environment(self) -> dict[str, str]:
        inherited = os.environ.get("PYTHONPATH")
        path = [*self._path, inherited] if inherited else self._path
        return {
            **os.environ,
            **self.variables,
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONUNBUFFERED": "1",
        }

    def _logged(self, step: Step, allowed_s: float) -> int | None:
        """Like `_wait`, with the output in the step's log."""
        if step.log is None:
            return self._wait(step.command, None, allowed_s)
        with (self.out / step.log).open("w", encoding="utf-8") as log:
            if self.heading:
                log.write(f"{self.heading}\n\n")
                log.flush()
            return self._wait(step.command, log, allowed_s)

    def _wait(
        self, command: Sequence[str], log: IO[str] | None, allowed_s: float
    ) -> int | None:
        """The exit code, None if the process had to be stopped."""
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=None if log is None else subprocess.STDOUT,
            start_new_session=True,
        )
        self._running.add(process)
        try:
            in_time = _ends(process, 0 if self._interrupted else allowed_s)
            return process.wait() if in_time else None
        finally:
            if process.returncode is None:
                _stop(process)
            self._running.discard(process)

    def summary(self) -> str:
        """A line for each step."""
        return "\n".join(_line(outcome) for outcome in self.outcomes)


def _stop(*processes: subprocess.Popen[bytes]) -> None:
    """Interrupt processes, so that they write what they have, then kill them.

    Each leads a group of processes, which keeps its number while a child is left.
    """
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
    deadline = time.monotonic() + GRACE_S
    for process in processes:
        _ends(process, max(deadline - time.monotonic(), 0))
        with suppress(ProcessLookupError):
            # The compiler's workers outlive an interrupt.
            os.killpg(process.pid, signal.SIGKILL)
        _ends(process, None)
        process.wait()


def _ends(process: subprocess.Popen[bytes], timeout_s: float | None) -> bool:
    """Whether the process ends in time.

    Waits without `Popen.wait`: if a signal's exception arrives there, the lock of the
    Popen can stay taken, and every later wait for that process blocks.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        return bool(waiting.poll(None if timeout_s is None else timeout_s * 1000))
    finally:
        os.close(descriptor)


def _show(path: Path, count: int) -> None:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines[max(len(lines) - count, 0) :]:
        print(f"  {line}", file=sys.stdout)


def _line(outcome: Outcome) -> str:
    reason = f" ({outcome.reason})" if outcome.reason else ""
    return f"{outcome.name:<16} {outcome.status.value}{reason}, {outcome.seconds:.0f} s"

"""What a command shows while it works: one live line, and lines that stay.

On a terminal the live line has the task, its step and the time; a line that stays takes
its place when the task ends. Elsewhere, as in the log of a CI job, a plain line says
that a task starts, and another how it ended. Knows nothing of what a task does.
"""

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from llama_perf.report.table import row_names
from llama_perf.results.run import Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run.time_left import Ended, Task, expected_s, total_s
from llama_perf.run.worker_protocol import NOTE

# Of a label that is cut to make room for the rest of the live line.
_LEAST_LABEL = 16
# What follows a label in a line that stays takes about as many columns.
_FIGURES = 40


def clock(seconds: float) -> str:
    """A duration as 0:41 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def live_line(
    label: str, step: str, elapsed_s: float, left_s: float | None, width: int
) -> str:
    """The live line, in at most `width` columns; without an estimate where it is None.

    In a narrow terminal the times get short first, then the label; then the step goes.
    """
    long, short = f"{clock(elapsed_s)} elapsed", clock(elapsed_s)
    if left_s is not None:
        long, short = (
            f"{long}, about {clock(left_s)} left",
            f"{short}, {clock(left_s)} left",
        )
    for tail in (f"{step}  {long}", f"{step}  {short}", short):
        room = width - len(tail) - 2
        if room >= min(len(label), _LEAST_LABEL):
            return f"{_cut(label, room)}  {tail}"
    return _cut(label, width)


def _cut(label: str, width: int) -> str:
    if len(label) <= width:
        return label
    # Ids begin alike: their end says more.
    name = label.index("]") + 2
    room = width - name - 3
    return f"{label[:name]}...{label[-room:]}" if room > 0 else label[:width]


class Display:
    """The tasks of a command on a console: `plan` them, then take each by `next`.

    `ended` has those that count for the estimates.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_live = console.is_terminal and console.is_interactive
        self._begin_s: float | None = None
        self._coming: deque[Task] = deque()
        self._total = 0
        self._label_width = 0
        self.ended: list[Ended] = []

    @classmethod
    def on(cls, stream: TextIO, **options: Any) -> "Display":
        """A display on stdout or stderr; `options` are those of rich's console."""
        # Whether it is a terminal: rich would also go by FORCE_COLOR, and write escape
        # codes into a file.
        is_terminal, is_stderr = stream.isatty(), stream is sys.stderr
        return cls(
            Console(
                stderr=is_stderr, force_terminal=is_terminal, highlight=False, **options
            )
        )

    def note(self, text: str | Text) -> None:
        """Show a line that stays, above the live line."""
        line = Text(text) if isinstance(text, str) else text
        # A terminal gets whole words in each line, a file the line as it is.
        self._console.print(line, soft_wrap=not self._console.is_terminal)

    def plan(self, tasks: Iterable[Task]) -> None:
        """Set the tasks, in their order."""
        self._coming = deque(tasks)
        self._total = len(self._coming)
        self._label_width = max((len(task.name) for task in self._coming), default=0)

    def plan_rows(
        self,
        turns: Sequence[tuple[RowSpec, str]],
        *,
        stored_s: Mapping[str, float] | None = None,
    ) -> None:
        """Plan a task for each row and what is done with it, empty where it just runs.

        The lines have the rows' names, or the part of their ids in which they differ; a
        note has the rest. `stored_s` has a baseline's seconds by id.
        """
        rows = {row.id: row for row, _ in turns}
        names, common = row_names(list(rows.values()))
        short = dict(zip(rows, names, strict=True))
        if common:
            self.note(f"every row: {common}")
        self.plan(
            Task(
                id=row.id,
                name=", ".join(filter(None, (short[row.id], part))),
                kind="compiled" if row.compile else "eager",
                stored_s=(stored_s or {}).get(row.id),
            )
            for row, part in turns
        )

    def drop(self, task_id: str) -> None:
        """Take the tasks of an id that are still to come out of the plan."""
        kept = deque(task for task in self._coming if task.id != task_id)
        self._total -= len(self._coming) - len(kept)
        self._coming = kept

    @contextmanager
    def next(self) -> Iterator["Running"]:
        """Show the next task of the plan while the block does it.

        A block that raises leaves no line of the task.
        """
        now = time.monotonic()
        self._begin_s = now if self._begin_s is None else self._begin_s
        task = self._coming.popleft()
        number = f"{self._total - len(self._coming):>{len(str(self._total))}}"
        running = Running(self, task, label=f"[{number}/{self._total}] {task.name}")
        if self._is_live:
            with self._live(running) as live:
                running.live = live
                live.refresh()
                yield running
        else:
            self.note(self.line(running, 1 << 16))
            yield running
        if running.outcome is not None:
            self.note(self._outcome_line(running, running.outcome))

    def _live(self, running: "Running") -> Live:
        def line() -> Text:
            return Text(self.line(running, self._console.width))

        return Live(
            console=self._console,
            get_renderable=line,
            # Each refresh takes a moment of the processor that runs the row.
            refresh_per_second=1,
            transient=True,
            # What else goes to the terminal, such as a warning, stays above the line.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )

    def line(self, running: "Running", width: int) -> str:
        """The live line of the task now."""
        elapsed_s = time.monotonic() - (self._begin_s or 0)
        later_s, own_s = total_s(self._coming, self.ended), running.left_s
        left_s = None if later_s is None or own_s is None else later_s + own_s
        if left_s is not None and left_s < 1:
            # The estimate was too short.
            left_s = None
        return live_line(running.label, running.text, elapsed_s, left_s, width)

    def _outcome_line(self, running: "Running", outcome: Text) -> Text:
        number = running.label.index("]") + 2
        width = number + self._label_width
        narrow = self._console.is_terminal and self._console.width < width + _FIGURES
        label = running.label if narrow else f"{running.label:<{width}}"
        return Text.assemble(label, "  ", outcome, f"  {running.seconds:.1f} s")


class Running:
    """A task that runs."""

    def __init__(self, display: Display, task: Task, *, label: str) -> None:
        self._display = display
        self._begin_s = time.monotonic()
        self._expected_s = expected_s(task, display.ended)
        self._is_counted = False
        self.task, self.label = task, label
        self.text = "started"
        self.live: Live | None = None
        self.outcome: Text | None = None

    @property
    def seconds(self) -> float:
        """Its seconds up to now."""
        return time.monotonic() - self._begin_s

    @property
    def left_s(self) -> float | None:
        """The seconds that it still takes; None where they are not known."""
        if self._expected_s is None:
            return None
        return max(self._expected_s - self.seconds, 0.0)

    def step(self, text: str) -> None:
        """Show what it does now; a text that begins with NOTE is a line that stays."""
        if text.startswith(NOTE):
            self._display.note(f"{self.label}: {text.removeprefix(NOTE)}")
            return
        self.text = text
        if self.live is not None:
            self.live.refresh()

    def repeat(self, times: int) -> None:
        """Say that the task is done, and done again so many times to confirm it."""
        seconds = self.seconds
        self._count()
        self._expected_s = seconds * (times + 1)

    def end(
        self, figures: str, word: str = "", style: str = "", *, counted: bool = True
    ) -> None:
        """Set the line that stays: figures, and a word, such as a verdict, in a style.

        A task that is not `counted` tells nothing of the time that others take.
        """
        parts = [
            Text(text, style=how)
            for text, how in ((figures, ""), (word, style))
            if text
        ]
        self.outcome = Text("  ").join(parts)
        if counted:
            self._count()

    def end_row(
        self,
        figures: str,
        verdict: str,
        style: str,
        *,
        status: Status,
        taken_over: bool,
    ) -> None:
        """As `end`, for a row; not counted if it did not run or was `taken_over`."""
        self.end(
            f"taken over: {figures}" if taken_over else figures,
            verdict,
            style,
            counted=not taken_over and status is not Status.NOT_RUN,
        )

    def _count(self) -> None:
        if not self._is_counted:
            self._is_counted = True
            self._display.ended.append(Ended(self.task, self.seconds))

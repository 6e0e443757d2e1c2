"""What a run is asked for: which rows, how they run, what they are compared with.

Frozen values that both command lines fill (`run/options.py`). Imports no torch.
"""

from __future__ import annotations

import fnmatch
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llama_perf import report
from llama_perf.errors import SpecError
from llama_perf.files import check_writable, write_atomically
from llama_perf.gate import baselines
from llama_perf.results.run import Report
from llama_perf.rows import selection
from llama_perf.rows.limit_overrides import ProjectLimits
from llama_perf.rows.spec import RowSpec

ISOLATIONS = ("session", "row")


@dataclass(frozen=True, kw_only=True, slots=True)
class Slowdown:
    """Rows whose id matches `glob` repeat the share `share` of their decoding steps."""

    glob: str
    share: float

    @classmethod
    def parse(cls, text: str) -> Slowdown:
        """Parse "GLOB=PERCENT", such as "*int8wo*=25"; raises SpecError."""
        glob, separator, percent = text.rpartition("=")
        try:
            share = float(percent.removesuffix("%")) / 100
        except ValueError:
            share = -1.0
        if not separator or not glob or not 0 < share <= 10:
            raise SpecError(
                "inject-slowdown", text, "write GLOB=PERCENT, percent from 0 to 1000"
            )
        return cls(glob=glob, share=share)

    def matches(self, row_id: str) -> bool:
        """Whether this slowdown applies to the row."""
        return fnmatch.fnmatchcase(row_id, self.glob)


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The rows that `--set`, `--rows`, `--row` and `--shard` select."""

    set_name: str | None = None
    rows_file: Path | None = None
    globs: tuple[str, ...] = ()
    shard: str | None = None

    @property
    def named(self) -> bool:
        """Whether the user named the rows, instead of taking this machine's set."""
        return bool(self.set_name or self.rows_file or self.globs or self.shard)

    @property
    def named_set(self) -> str | None:
        """The set the user named, or this machine's; None with a file of rows."""
        if self.set_name is not None or self.rows_file is not None:
            return self.set_name
        # It imports torch.
        from llama_perf.devices.device import unasked_device

        return selection.DEFAULT_SETS[unasked_device()]

    def all_rows(self) -> list[RowSpec]:
        """Every row of the set or file; raises UserError."""
        return selection.load(set_name=self.named_set, file=self.rows_file, globs=())

    def rows(self) -> list[RowSpec]:
        """The selected rows; raises UserError, as where a glob matches none."""
        rows = selection.select(self.all_rows(), self.globs)
        return rows if self.shard is None else selection.shard(rows, self.shard)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How rows are run.

    `checkpoints` is the folder of models; `slowdowns` and `damages` (patterns of row
    ids) are for testing the gate; `isolate` is "session" (one worker process for all
    rows, replaced after a row breaks) or "row" (one process a row); a row that takes
    longer than `row_timeout_s` is stopped; the whole run may take `time_budget_s`;
    `resume` is the results file of a run to continue; with `wait`, a run waits for
    another run on its device. Raises SpecError for a value that is not allowed.
    """

    checkpoints: Path | None = None
    slowdowns: tuple[Slowdown, ...] = ()
    damages: tuple[str, ...] = ()
    isolate: str = "session"
    row_timeout_s: float | None = None
    time_budget_s: float | None = None
    resume: Path | None = None
    wait: bool = False

    def __post_init__(self) -> None:
        if self.isolate not in ISOLATIONS:
            allowed = f"allowed: {', '.join(ISOLATIONS)}"
            raise SpecError("isolate", self.isolate, allowed)
        for name in ("row_timeout", "time_budget"):
            seconds = getattr(self, f"{name}_s")
            if seconds is not None and not 0 < seconds < math.inf:
                name = name.replace("_", "-")
                raise SpecError(name, seconds, "allowed: a number of seconds above 0")
        if self.checkpoints is not None and not self.checkpoints.is_dir():
            raise SpecError("checkpoints", str(self.checkpoints), "no such folder")

    def slowdown(self, row_id: str) -> float:
        """The share of decoding steps that the row repeats; 0 for almost every row."""
        return sum(
            slowdown.share for slowdown in self.slowdowns if slowdown.matches(row_id)
        )

    def damaged(self, row_id: str) -> bool:
        """Whether one of the row's scales is damaged; False for almost every row."""
        return any(fnmatch.fnmatchcase(row_id, glob) for glob in self.damages)

    def check_injections(self, rows: Sequence[RowSpec]) -> None:
        """Raise SpecError for a slowdown or a damage that matches none of `rows`."""
        globs = [("inject-slowdown", slowdown.glob) for slowdown in self.slowdowns]
        globs += [("inject-damage", glob) for glob in self.damages]
        for name, glob in globs:
            if not fnmatch.filter([row.id for row in rows], glob):
                raise SpecError(name, glob, "no selected row matches")


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareOptions:
    """Whether a run is compared with a baseline, and which of its rows then fail."""

    asked: bool = False
    baselines: Path = field(default_factory=baselines.default_folder)
    missing_fails: bool = True
    undecided_fails: bool = True
    confirm: bool = True
    limits: ProjectLimits = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest:
    """All that a command line asked of a run.

    `results` is where results are saved after each row (None: nowhere); `print_results`
    asks for them on stdout. The report goes to `reports`, each in the format of its
    suffix, and to `markdown`.
    """

    selection: Selection
    run: RunOptions
    compare: CompareOptions
    results: Path | None = None
    print_results: bool = False
    reports: tuple[Path, ...] = ()
    markdown: Path | None = None

    def check_reports(self) -> None:
        """Raise SpecError where the report cannot be written."""
        for path in self.reports:
            report.check_path(path)
        if self.markdown is not None:
            check_writable("markdown", self.markdown)

    def write_reports(self, results: Report) -> None:
        """Write the report of `results` to each of its files."""
        for path in self.reports:
            report.write(results, path)
        if self.markdown is not None:
            write_atomically(self.markdown, report.draw(results, "markdown"))

    def command(self, *words: str) -> list[str]:
        """The command line `llama-perf WORDS` with the options of this request.

        In an environment that is not activated, `llama-perf` is not on the path: its
        Python runs it then.
        """
        start = ["llama-perf"]
        if shutil.which("llama-perf") is None:
            python = Path(sys.executable)
            if python.is_relative_to(Path.cwd()):
                python = python.relative_to(Path.cwd())
            start = [str(python), "-m", "llama_perf"]
        command = [*start, *words]
        if self.selection.rows_file is not None:
            command += ["--rows", str(self.selection.rows_file)]
        else:
            command += ["--set", str(self.selection.named_set)]
        if self.run.checkpoints is not None:
            command += ["--checkpoints", str(self.run.checkpoints)]
        if self.compare.baselines != baselines.default_folder():
            command += ["--baselines", str(self.compare.baselines)]
        return command

"""What a run is asked for: the options that pytest and the command line share.

Each is defined once, as a field of `RunRequest`: its name, its default, its help and
how it is written. Imports no torch and runs nothing.
"""

import argparse
import fnmatch
import math
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

from llama_perf import report as reports
from llama_perf.errors import SpecError, WriteError
from llama_perf.files import check_writable, check_writable_anew, write_atomically
from llama_perf.results.baselines import baselines_folder
from llama_perf.results.run import Report
from llama_perf.rows import selection
from llama_perf.rows.limit_overrides import ProjectLimits, project_limits
from llama_perf.rows.spec import RowSpec

_FAIL_OR_REPORT: dict[str, Any] = {"choices": ("fail", "report"), "default": "fail"}


def _option(text: str, metavar: str | None = None, **keywords: Any) -> Any:
    """A field with what `add_argument` of argparse and `addoption` of pytest take."""
    keywords = {"help": text, "default": None} | keywords
    if metavar is not None:
        keywords["metavar"] = metavar
    default = keywords["default"]
    return field(default=() if default == [] else default, metadata=keywords)


def _flag(text: str) -> Any:
    return _option(text, default=False, action="store_true")


def _repeatable(text: str, metavar: str) -> Any:
    return _option(text, metavar, default=[], action="append")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest:
    """All that a command line asks of a run; raises SpecError for a wrong value.

    Paths are absolute or relative to the working directory. `results_named` says that
    the user named that file. `inject_slowdown` are patterns of row ids and the share by
    which their generations are slowed.
    """

    set: str | None = _option(
        "run a set of rows that comes with the package (default: cuda on a machine"
        " with a CUDA GPU, else cpu)",
        "NAME",
    )
    rows: Path | None = _option(
        "run the rows of your own TOML file instead of a set", "FILE"
    )
    row: Sequence[str] = _repeatable(
        "run only the rows whose id matches the pattern (repeatable)", "GLOB"
    )
    shard: str | None = _option(
        "run only the I-th of N parts: every N-th row, starting with the I-th", "I/N"
    )
    checkpoints: Path | None = _option(
        "look for each row's model by its name in this folder; a model that is not"
        " there gets synthetic weights of the same shape",
        "DIR",
    )
    isolate: str = _option(
        "run all rows in one worker process, which is replaced after a row breaks"
        " (session, the default), or each row in its own process (row)",
        choices=("session", "row"),
        default="session",
    )
    row_timeout: float | None = _option(
        "stop a row that takes longer and report it as INVALID; the start of its"
        " process does not count (default: no limit)",
        "SECONDS",
        type=float,
    )
    time_budget: float | None = _option(
        "start no row that cannot finish within this time, counted from the start"
        " of the run; the remaining rows are NOT_RUN (default: no limit)",
        "SECONDS",
        type=float,
    )
    wait: bool = _flag("if another run uses the device, wait for it instead of failing")
    compare: bool = _flag(
        "compare with this device's baseline; a row that looks slower or larger runs"
        " again in fresh processes before it fails"
    )
    baselines: Path = field(
        default_factory=baselines_folder,
        metadata={
            "help": "the folder of baselines (default: baselines/ of the project)",
            "metavar": "DIR",
            "default": None,
        },
    )
    on_missing_baseline: str = _option(
        "whether a row without a baseline fails (fail, the default) or is only"
        " reported (report)",
        **_FAIL_OR_REPORT,
    )
    base: str | None = _option(
        "with a comparison, the revision that the change starts from: a row that is"
        " slower or larger than its baseline, and not than this revision, is"
        " ALREADY_SLOWER or ALREADY_LARGER and fails nothing",
        "REV",
    )
    no_confirm: bool = _flag(
        "with a comparison, start no more processes: a row that looks slower or larger"
        " is UNDECIDED"
    )
    on_undecided: str = _option(
        "whether an UNDECIDED row fails (fail, the default) or is only reported"
        " (report)",
        **_FAIL_OR_REPORT,
    )
    results: Path | None = _option(
        "save the results in this JSON file after each row (pytest: by default"
        " .llama-perf/last.json; the command line: '-' prints them as the last line)",
        "FILE",
    )
    resume: bool = _flag(
        "continue the run whose results are in the --results file: rows it measured are"
        " not measured again"
    )
    report: tuple[Path, ...] = _repeatable(
        "write the report to this file, in the format of its suffix:"
        f" {', '.join(reports.suffixes())} (repeatable)",
        "FILE",
    )
    markdown: Path | None = _option(
        "write the report as markdown, whatever the file's suffix", "FILE"
    )
    inject_slowdown: tuple[tuple[str, float], ...] = _repeatable(
        "for testing the gate: slow each generation of matching rows by this share of"
        " its time, by repeating decode steps (repeatable)",
        "GLOB=PERCENT",
    )
    inject_damage: Sequence[str] = _repeatable(
        "for testing the value check: damage one scale of matching rows (repeatable)",
        "GLOB",
    )
    cold_compile: bool = _flag(
        "compile each row anew, without code that was compiled before: its time to"
        " compile is then measured"
    )
    print_results: bool = False
    results_named: bool = True
    limits: ProjectLimits = ()

    def __post_init__(self) -> None:
        limits = {"row-timeout": self.row_timeout, "time-budget": self.time_budget}
        for name, seconds in limits.items():
            if seconds is not None and not 0 < seconds < math.inf:
                raise SpecError(name, seconds, "allowed: a number of seconds above 0")
        if self.checkpoints is not None and not os.path.isdir(self.checkpoints):
            raise SpecError("checkpoints", str(self.checkpoints), "no such folder")

    @property
    def named_set(self) -> str | None:
        """The set the user named, or this machine's; None with a file of rows."""
        if self.set is not None or self.rows is not None:
            return self.set
        # It imports torch.
        from llama_perf.devices.device import unasked_device

        # The set that runs where none was asked for has its device's name.
        return unasked_device()

    def all_rows(self) -> list[RowSpec]:
        """Every row of the set or file; raises UserError."""
        if self.rows is None:
            return selection.load_set(str(self.named_set))
        if self.set is not None:
            raise SpecError("rows", str(self.rows), "give --rows or --set, not both")
        return selection.load_file(self.rows)

    def selected(self, rows: Sequence[RowSpec] | None = None) -> list[RowSpec]:
        """The rows, or those among `rows`, that globs and shard select.

        Raises UserError where a glob, a slowdown or a damage matches none of them.
        """
        rows = selection.select(self.all_rows() if rows is None else rows, self.row)
        rows = rows if self.shard is None else selection.shard(rows, self.shard)
        globs = [("inject-slowdown", glob) for glob, _ in self.inject_slowdown]
        globs += [("inject-damage", glob) for glob in self.inject_damage]
        for name, glob in globs:
            if not fnmatch.filter([row.id for row in rows], glob):
                raise SpecError(name, glob, "no selected row matches")
        return rows

    def slowdown(self, row_id: str) -> float:
        """The share by which the row is slowed; 0 for almost every row."""
        matches = fnmatch.fnmatchcase
        return sum(part for glob, part in self.inject_slowdown if matches(row_id, glob))

    def damaged(self, row_id: str) -> bool:
        """Whether one of the row's scales is damaged; False for almost every row."""
        return any(fnmatch.fnmatchcase(row_id, glob) for glob in self.inject_damage)

    def write_reports(self, results: Report) -> list[str]:
        """Write the report of `results` to each of its files.

        Returns a line for each file that cannot be written.
        """
        problems = []
        for path in filter(None, (*self.report, self.markdown)):
            try:
                if path == self.markdown:
                    write_atomically(path, reports.draw(results, "markdown"))
                else:
                    reports.write(results, path)
            except WriteError as error:
                problems.append(str(error))
        return problems

    def command(self, *words: str) -> list[str]:
        """The command line `llama-perf WORDS` with the options of this request.

        In an environment that is not activated, `llama-perf` is not on the path: its
        Python runs it then.
        """
        command = ["llama-perf"]
        if shutil.which("llama-perf") is None:
            python = Path(sys.executable)
            if python.is_relative_to(Path.cwd()):
                python = python.relative_to(Path.cwd())
            command = [str(python), "-m", "llama_perf"]
        baselines = None if self.baselines == baselines_folder() else self.baselines
        options = {
            "--set": self.named_set,
            "--rows": self.rows,
            "--checkpoints": self.checkpoints,
            "--baselines": baselines,
            "--base": self.base,
        }
        pairs = [(name, str(value)) for name, value in options.items() if value]
        for glob, share in self.inject_slowdown:
            pairs.append(("--inject-slowdown", f"{glob}={share * 100:g}"))
        return [*command, *words, *chain.from_iterable(pairs)]


OPTIONS: dict[str, dict[str, Any]] = {
    f"--{option.name.replace('_', '-')}": {**option.metadata, "dest": option.name}
    for option in fields(RunRequest)
    if option.metadata
}
_FORMER_NAMES = {"--compare": "--benchmark-compare", "--results": "--json"}
"""The command line still takes them, without listing them."""


def add_shared(
    parser: argparse.ArgumentParser, *names: str, **changed_help: str
) -> None:
    """Add the shared options `names`, or all of them, to a command's parser.

    A command where an option means something else gives its help: `set="..."`.
    """
    for name in names or OPTIONS:
        keywords = dict(OPTIONS[name])
        keywords["help"] = changed_help.get(keywords["dest"], keywords["help"])
        parser.add_argument(name, **keywords)
        if name in _FORMER_NAMES:
            hidden = {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
            parser.add_argument(_FORMER_NAMES[name], **keywords | hidden)


def request_of(arguments: argparse.Namespace) -> RunRequest:
    """Read a command's arguments; an option that it lacks has its default."""
    values = {
        option["dest"]: getattr(arguments, option["dest"], option["default"])
        for option in OPTIONS.values()
    }
    return read_request(values, folder=Path(), root=baselines_folder().parent)


def read_request(
    values: dict[str, Any],
    *,
    folder: Path,
    root: Path,
    default_results: Path | None = None,
) -> RunRequest:
    """Turn the value of each option into a request; raises UserError.

    Paths are relative to `folder`. `root` is the project, with `baselines/` and the
    `pyproject.toml` that may set limits. It is also an error where the results or the
    report cannot be written, but for `default_results`, which nobody named. Their
    folder is made.
    """
    results, print_results = values["results"], values["results"] == "-"
    for name in ("rows", "checkpoints", "baselines", "results", "markdown"):
        if values[name] is not None:
            values[name] = folder / values[name]
    values["baselines"] = values["baselines"] or root / "baselines"
    values["results"] = None if print_results else values["results"] or default_results
    if values["resume"] and values["results"] is None:
        raise SpecError(
            "resume", results, "name the results of that run: --results FILE"
        )
    values["report"] = tuple(folder / text for text in values["report"])
    values["inject_slowdown"] = tuple(map(parse_slowdown, values["inject_slowdown"]))
    limits = project_limits(root / "pyproject.toml")
    request = RunRequest(
        **values,
        print_results=print_results,
        results_named=results is not None,
        limits=limits,
    )
    if request.results_named and request.results is not None:
        made = default_results is not None
        (check_writable_anew if made else check_writable)("results", request.results)
    for path in request.report:
        reports.check_path(path)
    if request.markdown is not None:
        check_writable("markdown", request.markdown)
    return request


def parse_slowdown(text: str) -> tuple[str, float]:
    """Parse "GLOB=PERCENT", such as "*int8wo*=25", to a share; raises SpecError."""
    glob, _, percent = text.rpartition("=")
    with suppress(ValueError):
        share = float(percent.removesuffix("%")) / 100
        if glob and 0 < share <= 10:
            return glob, share
    raise SpecError(
        "inject-slowdown", text, "write GLOB=PERCENT, percent above 0, at most 1000"
    )

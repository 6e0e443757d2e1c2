"""What a run is asked for: the options that pytest and the command line share.

Each is defined once, as a field of `RunRequest`: its name, its default, its help and
how it is written. Imports no torch and runs nothing.
"""

import fnmatch
import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from shlex import quote
from typing import Any

from llama_perf import report as reports
from llama_perf.errors import SpecError, UserError, WriteError
from llama_perf.files import is_absent, read_prose, write_atomically
from llama_perf.report.columns import NAMES, in_files, parse
from llama_perf.results.baselines import baselines_folder
from llama_perf.results.run import Report
from llama_perf.rows import selection
from llama_perf.rows.limit_overrides import ProjectLimits
from llama_perf.rows.spec import RowSpec
from llama_perf.run.numbers import SECONDS, TEXT_TOKENS
from llama_perf.words import shown

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
        "run a set of rows, which comes with this package or with another one"
        " (default: cuda on a machine with a CUDA GPU, else cpu)",
        "NAME",
    )
    rows: Path | None = _option(
        "run the rows of your own TOML file instead of a set", "FILE"
    )
    row: Sequence[str] = _repeatable(
        "run only the rows whose id or name matches the pattern (repeatable)", "GLOB"
    )
    shard: str | None = _option(
        "run only the I-th of N parts: every N-th row, starting with the I-th", "I/N"
    )
    checkpoints: Path | None = _option(
        "look for each row's model by its name in this folder first; a preset that is"
        " not here gets synthetic weights of its shape",
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
        type=SECONDS,
    )
    time_budget: float | None = _option(
        "start no row that cannot finish within this time, counted from the start"
        " of the run; the remaining rows are NOT_RUN (default: no limit)",
        "SECONDS",
        type=SECONDS,
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
    baseline_patch: Path | None = _option(
        "with a comparison, measure the rows that became faster or smaller, or that the"
        " baseline lacks, in as many processes as `llama-perf baseline record` does,"
        " and write the change of the baseline to this file, which `git apply` takes",
        "FILE",
    )
    report: tuple[Path, ...] = _repeatable(
        "write the report to this file, in the format of its suffix:"
        f" {', '.join(reports.suffixes())} (repeatable)",
        "FILE",
    )
    markdown: Path | None = _option(
        "write the report as markdown, whatever the file's suffix", "FILE"
    )
    columns: str | None = _option(
        "show these columns of the table: all, narrow (what fits 80 characters), or"
        f" names with a comma between: {', '.join(NAMES)}. By default all, or on a"
        " terminal that is too narrow what fits it. The tables of a --report have all"
        " unless some are named; CSV, JSON and JSON Lines always have everything",
        "COLUMNS",
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
    closeness: bool = _flag(
        "also compare each quantized row with its unquantized twin over a text: dB,"
        " Kullback-Leibler divergence, perplexity, greedy tokens"
    )
    text: Path | None = _option(
        "for closeness: the text that is read, UTF-8 (default: a built-in one)", "FILE"
    )
    tokens: int | None = _option(
        "for closeness: how many tokens of the text are read (default: 256, or as many"
        " as it has)",
        "N",
        type=TEXT_TOKENS,
    )
    print_results: bool = False
    results_named: bool = True
    limits: ProjectLimits = ()

    def __post_init__(self) -> None:
        limits = {"row-timeout": self.row_timeout, "time-budget": self.time_budget}
        for name, seconds in limits.items():
            if seconds is not None and not 0 < seconds < math.inf:
                raise SpecError(name, seconds, f"allowed: {SECONDS.allowed}")
        parse(self.columns)
        if self.text is not None:
            try:
                read_prose(self.text, error=UserError)
            except UserError as error:
                raise UserError(f"text: {error}") from None
        if self.checkpoints is not None and not os.path.isdir(self.checkpoints):
            absent = is_absent(self.checkpoints)
            problem = "no such folder" if absent else "give a folder"
            raise SpecError("checkpoints", str(self.checkpoints), problem)

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
            name = str(self.named_set)
            # It refuses a name that a package has as well.
            selection.installed_set(name)
            return selection.load_set(name)
        if self.set is not None:
            raise SpecError("rows", str(self.rows), "give --rows or --set, not both")
        return selection.load_file(self.rows)

    def selected(self, rows: Sequence[RowSpec] | None = None) -> list[RowSpec]:
        """The rows, or those among `rows`, that globs and shard select.

        Raises UserError where a glob, a slowdown or a damage matches none of them.
        """
        place, words = " of any set", ""
        if rows is None:
            rows, place = self.all_rows(), f" of the set {self.named_set}"
            words = f" --set {self.named_set}"
            if self.rows is not None:
                place, words = f" of {self.rows}", f" --rows {quote(str(self.rows))}"
        rows = selection.select(rows, self.row, place=place, words=words)
        rows = rows if self.shard is None else selection.shard(rows, self.shard)
        if self.cold_compile and not any(row.compile for row in rows):
            raise UserError("cold-compile: no selected row is compiled")
        globs = [("inject-slowdown", glob) for glob, _ in self.inject_slowdown]
        globs += [("inject-damage", glob) for glob in self.inject_damage]
        for name, glob in globs:
            if not fnmatch.filter([row.id for row in rows], glob):
                raise UserError(f"{name}: no selected row matches {shown(glob)}")
        return rows

    def slowdown(self, row_id: str) -> float:
        """The share by which the row is slowed; 0 for almost every row."""
        matches = fnmatch.fnmatchcase
        return sum(part for glob, part in self.inject_slowdown if matches(row_id, glob))

    def damaged(self, row_id: str) -> bool:
        """Whether one of the row's scales is damaged; False for almost every row."""
        return any(fnmatch.fnmatchcase(row_id, glob) for glob in self.inject_damage)

    def check_text(self) -> None:
        """Raise UserError where a text is named and no closeness is measured."""
        for name in ("text", "tokens"):
            if getattr(self, name) is not None and not self.closeness:
                raise UserError(f"{name}: it belongs to --closeness: add that")

    def write_reports(self, results: Report) -> list[str]:
        """Write the report of `results` to each of its files.

        Returns a line for each file that cannot be written.
        """
        layout = in_files(self.columns)
        problems = reports.write_all(results, self.report, layout)
        if self.markdown is not None:
            text = reports.draw(results, "markdown", layout)
            try:
                write_atomically(self.markdown, text)
            except WriteError as error:
                problems.append(str(error))
        return problems

    def command(self, *words: str) -> list[str]:
        """The command line `llama-perf WORDS` with the options of this request."""
        baselines = None if self.baselines == baselines_folder() else self.baselines
        options = {
            "--set": self.named_set,
            "--rows": self.rows,
            "--checkpoints": self.checkpoints,
            "--baselines": baselines,
            "--base": self.base,
            "--text": self.text,
            "--tokens": self.tokens,
        }
        pairs = [(name, str(value)) for name, value in options.items() if value]
        for glob, share in self.inject_slowdown:
            pairs.append(("--inject-slowdown", f"{glob}={share * 100:g}"))
        if self.closeness:
            words = (*words, "--closeness")
        return [*program("llama-perf"), *words, *chain.from_iterable(pairs)]


def program(name: str) -> list[str]:
    """The first words of a command line of `llama-perf` or `pytest`.

    In an environment that is not activated, the path has no such program, or another
    environment's: its Python runs it then.
    """
    python, found = Path(sys.executable), shutil.which(name)
    if found is not None and Path(found).parent == python.parent:
        return [name]
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return [str(python), "-m", name.replace("-", "_")]


OPTIONS: dict[str, dict[str, Any]] = {
    f"--{option.name.replace('_', '-')}": {**option.metadata, "dest": option.name}
    for option in fields(RunRequest)
    if option.metadata
}

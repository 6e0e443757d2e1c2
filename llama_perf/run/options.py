"""The options that pytest and the command line share, each defined once.

`OPTIONS` says how an option is written; `read_request` turns the values that either
command line gave into one frozen `RunRequest`. Imports no torch and runs nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama_perf import report
from llama_perf.errors import SpecError
from llama_perf.gate import baselines
from llama_perf.rows.limit_overrides import project_limits
from llama_perf.run.request import (
    ISOLATIONS,
    CompareOptions,
    RunOptions,
    RunRequest,
    Selection,
    Slowdown,
)

_SUFFIXES = ", ".join(report.suffixes())
FAIL_OR_REPORT = ("fail", "report")


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """An option as argparse and pytest both take it.

    `aliases` are former names, which the command line still takes without listing them.
    """

    help: str
    metavar: str | None = None
    type: Callable[[str], object] | None = None
    choices: tuple[str, ...] | None = None
    default: object = None
    action: str = "store"
    aliases: tuple[str, ...] = ()

    @property
    def keywords(self) -> dict[str, Any]:
        """What `add_argument` of argparse and `addoption` of pytest take."""
        names = ("help", "metavar", "type", "choices", "default", "action")
        values = {name: getattr(self, name) for name in names}
        # argparse refuses a type of None for an option that takes no value.
        return {
            name: value
            for name, value in values.items()
            if value is not None or name == "default"
        }


def _switch(text: str, *, aliases: tuple[str, ...] = ()) -> Option:
    return Option(help=text, default=False, action="store_true", aliases=aliases)


def _repeatable(metavar: str, text: str) -> Option:
    return Option(help=text, metavar=metavar, default=[], action="append")


OPTIONS = {
    "--set": Option(
        metavar="NAME",
        help="run a set of rows that comes with the package (default: cuda on a machine"
        " with a CUDA GPU, else cpu)",
    ),
    "--rows": Option(
        metavar="FILE", help="run the rows of your own TOML file instead of a set"
    ),
    "--row": _repeatable(
        "GLOB", "run only the rows whose id matches the pattern (repeatable)"
    ),
    "--shard": Option(
        metavar="I/N",
        help="run only the I-th of N parts: every N-th row, starting with the I-th",
    ),
    "--checkpoints": Option(
        metavar="DIR",
        help="look for each row's model by its name in this folder; a model that is not"
        " there gets synthetic weights of the same shape",
    ),
    "--isolate": Option(
        choices=ISOLATIONS,
        default="session",
        help="run all rows in one worker process, which is replaced after a row breaks"
        " (session, the default), or each row in its own process (row)",
    ),
    "--row-timeout": Option(
        metavar="SECONDS",
        type=float,
        help="stop a row that takes longer and report it as INVALID (default: no"
        " limit)",
    ),
    "--time-budget": Option(
        metavar="SECONDS",
        type=float,
        help="start no row that cannot finish within this time, counted from the start"
        " of the run; the remaining rows are NOT_RUN (default: no limit)",
    ),
    "--wait": _switch("if another run uses the device, wait for it instead of failing"),
    "--compare": _switch(
        "compare with this device's baseline; a row that looks slower or larger runs"
        " again in fresh processes before it fails",
        aliases=("--benchmark-compare",),
    ),
    "--baselines": Option(
        metavar="DIR",
        help="the folder of baselines (default: baselines/ of the project)",
    ),
    "--on-missing-baseline": Option(
        choices=FAIL_OR_REPORT,
        default="fail",
        help="whether a row without a baseline fails (fail, the default) or is only"
        " reported (report)",
    ),
    "--no-confirm": _switch(
        "with a comparison, start no fresh processes: a row that looks slower or larger"
        " is UNDECIDED"
    ),
    "--on-undecided": Option(
        choices=FAIL_OR_REPORT,
        default="fail",
        help="whether an UNDECIDED row fails (fail, the default) or is only reported"
        " (report)",
    ),
    "--results": Option(
        metavar="FILE",
        aliases=("--json",),
        help="save the results in this JSON file after each row (pytest: by default"
        " .llama-perf/last.json; the command line: '-' prints them as the last line)",
    ),
    "--resume": _switch(
        "continue the run whose results are in the --results file: rows it measured are"
        " not measured again"
    ),
    "--report": _repeatable(
        "FILE",
        "write the report to this file, in the format of its suffix:"
        f" {_SUFFIXES} (repeatable)",
    ),
    "--markdown": Option(
        metavar="FILE", help="write the report as markdown, whatever the file's suffix"
    ),
    "--inject-slowdown": _repeatable(
        "GLOB=PERCENT",
        "for testing the gate: repeat this share of the decoding steps of matching rows"
        " (repeatable)",
    ),
    "--inject-damage": _repeatable(
        "GLOB",
        "for testing the value check: damage one scale of matching rows (repeatable)",
    ),
}


def dest(name: str) -> str:
    """The attribute for an option's value: "--row-timeout" -> "row_timeout"."""
    return name.removeprefix("--").replace("-", "_")


def add_arguments(
    parser: argparse.ArgumentParser, *names: str, **changed_help: str
) -> None:
    """Add the shared options `names`, or all of them, to a command's parser.

    A command where an option means something else gives its help: `set="..."`.
    """
    for name in names or OPTIONS:
        option = OPTIONS[name]
        option = replace(option, help=changed_help.get(dest(name), option.help))
        parser.add_argument(name, dest=dest(name), **option.keywords)
        for alias in option.aliases:
            hidden = {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
            parser.add_argument(alias, dest=dest(name), **(option.keywords | hidden))


def request_of(arguments: argparse.Namespace) -> RunRequest:
    """Read a command's arguments; an option that it lacks has its default."""

    def value(name: str) -> Any:
        return getattr(arguments, dest(name), OPTIONS[name].default)

    return read_request(value, folder=Path(), root=baselines.default_folder().parent)


def read_request(
    value: Callable[[str], Any],
    *,
    folder: Path,
    root: Path,
    default_results: Path | None = None,
) -> RunRequest:
    """Turn the value of each option into a request; raises UserError.

    Paths are relative to `folder`. `root` is the project, with `baselines/` and the
    `pyproject.toml` that may set limits.
    """

    def path(name: str) -> Path | None:
        text = value(name)
        return None if text is None else folder / text

    print_results = value("--results") == "-"
    results = None if print_results else path("--results") or default_results
    if value("--resume") and results is None:
        raise SpecError(
            "resume", value("--results"), "name the results of that run: --results FILE"
        )
    return RunRequest(
        selection=Selection(
            set_name=value("--set"),
            rows_file=path("--rows"),
            globs=tuple(value("--row")),
            shard=value("--shard"),
        ),
        run=RunOptions(
            checkpoints=path("--checkpoints"),
            slowdowns=tuple(map(Slowdown.parse, value("--inject-slowdown"))),
            damages=tuple(value("--inject-damage")),
            isolate=value("--isolate"),
            row_timeout_s=value("--row-timeout"),
            time_budget_s=value("--time-budget"),
            resume=results if value("--resume") else None,
            wait=value("--wait"),
        ),
        compare=CompareOptions(
            asked=value("--compare"),
            baselines=path("--baselines") or root / "baselines",
            missing_fails=value("--on-missing-baseline") == "fail",
            undecided_fails=value("--on-undecided") == "fail",
            confirm=not value("--no-confirm"),
            limits=project_limits(root / "pyproject.toml"),
        ),
        results=results,
        print_results=print_results,
        reports=tuple(folder / text for text in value("--report")),
        markdown=path("--markdown"),
    )

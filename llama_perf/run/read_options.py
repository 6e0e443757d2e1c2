"""The shared options on a command line or in pytest, read into a request.

`options.py` defines them. Imports no torch and runs nothing.
"""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llama_perf import report as reports
from llama_perf.errors import SpecError, UserError
from llama_perf.files import (
    check_apart,
    check_readable_folder,
    check_writable,
    check_writable_anew,
)
from llama_perf.results.baselines import FILE_NAME, baselines_folder
from llama_perf.rows.limit_overrides import project_limits
from llama_perf.run.options import OPTIONS, RunRequest

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


def request_of(
    arguments: argparse.Namespace,
    *,
    new_baselines: bool = False,
    reads: Sequence[Path] = (),
) -> RunRequest:
    """Read a command's arguments; an option that it lacks has its default.

    `reads` are files of the command's own that it reads.
    """
    values = {
        option["dest"]: getattr(arguments, option["dest"], option["default"])
        for option in OPTIONS.values()
    }
    return read_request(
        values,
        folder=Path(),
        root=baselines_folder().parent,
        new_baselines=new_baselines,
        reads=reads,
    )


def read_request(
    values: dict[str, Any],
    *,
    folder: Path,
    root: Path,
    default_results: Path | None = None,
    new_baselines: bool = False,
    reads: Sequence[Path] = (),
) -> RunRequest:
    """Turn the value of each option into a request; raises UserError.

    Paths are relative to `folder`. `root` is the project, with `baselines/` and the
    `pyproject.toml` that may set limits. It is also an error where the results or the
    report cannot be written, but for `default_results`, which nobody named. Their
    folder is made. Each is a file of its own, and none that is read: the rows, a
    baseline, or one of `reads`. A folder of baselines that is named has to be there,
    unless it may be new.
    """
    print_results = values["results"] == "-"
    results_named = values["results"] is not None
    for name in (
        "rows",
        "checkpoints",
        "baselines",
        "results",
        "baseline_patch",
        "markdown",
        "text",
    ):
        if values[name] is not None:
            values[name] = folder / values[name]
    if values["baselines"] is None:
        values["baselines"] = root / "baselines"
    elif not new_baselines:
        check_readable_folder("baselines", values["baselines"])
    values["results"] = None if print_results else values["results"] or default_results
    if values["resume"] and values["results"] is None:
        raise UserError("resume: name the results of that run: --results FILE")
    values["report"] = tuple(folder / text for text in values["report"])
    values["inject_slowdown"] = tuple(map(parse_slowdown, values["inject_slowdown"]))
    limits = project_limits(root / "pyproject.toml")
    request = RunRequest(
        **values,
        print_results=print_results,
        results_named=results_named,
        limits=limits,
    )
    if request.results_named and request.results is not None:
        made = default_results is not None
        (check_writable_anew if made else check_writable)("results", request.results)
    reports.check_paths(request.report)
    if request.baseline_patch is not None:
        check_writable("baseline-patch", request.baseline_patch)
    if request.markdown is not None:
        check_writable("markdown", request.markdown)
    named = [("results", request.results), ("markdown", request.markdown)]
    named.append(("baseline-patch", request.baseline_patch))
    named += [("report", path) for path in request.report]
    inputs = [("a file that is read", path) for path in reads]
    if request.rows is not None:
        inputs.append(("the file of --rows", request.rows))
    if request.text is not None:
        inputs.append(("the file of --text", request.text))
    # Where the folder cannot be listed, whoever reads it gets the reason.
    with suppress(OSError, ValueError):
        stored = request.baselines.glob(f"*/{FILE_NAME}")
        inputs += [("a baseline", path) for path in stored]
    check_apart(named, inputs)
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

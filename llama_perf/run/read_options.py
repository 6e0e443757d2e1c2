"""The shared options on a command line or in pytest, read into a request.

`options.py` defines them. Imports no torch and runs nothing.
"""

import argparse
from contextlib import suppress
from pathlib import Path
from typing import Any

from llama_perf import report as reports
from llama_perf.errors import SpecError, UserError
from llama_perf.files import check_readable_folder, check_writable, check_writable_anew
from llama_perf.results.baselines import baselines_folder
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
    arguments: argparse.Namespace, *, new_baselines: bool = False
) -> RunRequest:
    """Read a command's arguments; an option that it lacks has its default."""
    values = {
        option["dest"]: getattr(arguments, option["dest"], option["default"])
        for option in OPTIONS.values()
    }
    return read_request(
        values,
        folder=Path(),
        root=baselines_folder().parent,
        new_baselines=new_baselines,
    )


def read_request(
    values: dict[str, Any],
    *,
    folder: Path,
    root: Path,
    default_results: Path | None = None,
    new_baselines: bool = False,
) -> RunRequest:
    """Turn the value of each option into a request; raises UserError.

    Paths are relative to `folder`. `root` is the project, with `baselines/` and the
    `pyproject.toml` that may set limits. It is also an error where the results or the
    report cannot be written, but for `default_results`, which nobody named. Their
    folder is made. A folder of baselines that is named has to be there, unless it may
    be new.
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
    if request.baseline_patch is not None:
        check_writable("baseline-patch", request.baseline_patch)
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

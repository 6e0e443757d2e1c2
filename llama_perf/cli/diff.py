"""`llama-perf diff`: two or more recordings compared, metric by metric."""

import argparse
from pathlib import Path

from llama_perf import report
from llama_perf.cli.ending import code_of, terminal_width
from llama_perf.cli.formats import add_formats
from llama_perf.errors import SpecError, UserError
from llama_perf.gate.diff import diff_of
from llama_perf.report.columns import Layout
from llama_perf.report.diff_table import METRIC_NAMES, parse_metrics
from llama_perf.results.diff import Diff
from llama_perf.rows import selection
from llama_perf.run.read_options import add_shared, request_of
from llama_perf.run.recordings import read_all

HELP = "compare stored results or baselines; exit with 1 for a loss"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "recordings",
        metavar="FILE|REV:[PATH]",
        nargs="+",
        help="the results of a run, a baseline, a save of pytest-benchmark, one of"
        " these at a revision (REV:PATH), the baseline at a revision (REV:), or - for"
        " stdin. The last one is judged by the first",
    )
    text = "compare only the rows whose id or name matches the pattern (repeatable)"
    add_shared(parser, "--row", row=text)
    parser.add_argument(
        "--metric",
        metavar="NAME",
        action="append",
        default=[],
        help="show this metric of each row, whether or not it changed (repeatable):"
        f" all, {', '.join(METRIC_NAMES)}".replace("%", "%%"),
    )
    parser.add_argument(
        "--limit",
        metavar="PERCENT",
        help="fail a row that lost more of its tok/s than this, or whose memory grew by"
        " more (default: the limits of the gate)",
    )
    parser.add_argument(
        "--across-devices",
        action="store_true",
        help="compare recordings of several devices; nothing is judged then",
    )
    add_shared(parser, "--baselines")
    parser.add_argument(
        "--device",
        metavar="KEY",
        help="the device whose baseline REV: means (default: that of the other files)",
    )
    add_formats(parser, Diff, "comparison")


def main(arguments: argparse.Namespace) -> int:
    """Print the comparison; 1 where a row lost more than its limits allow."""
    layout = Layout(parse_metrics(arguments.metric), terminal_width())
    limit = None if arguments.limit is None else parse_limit(arguments.limit)
    form = report.format_named(arguments.format, Diff)
    if arguments.metric and not form.has_columns:
        reason = f"{form.name} always has all of them; leave it out"
        raise SpecError("metric", arguments.metric[0], reason)
    read = [("a file that is read", Path(name)) for name in arguments.recordings]
    report.check_paths(arguments.report, Diff, others=read)
    found = compared(arguments, limit)
    problems = report.write_all(found, arguments.report, Layout(layout.names))
    print(report.draw(found, form.name, layout), end="")
    code = code_of(problems)
    return 1 if found.failed else code


def compared(arguments: argparse.Namespace, limit: float | None) -> Diff:
    """Read the recordings and compare them; raises UserError."""
    names = arguments.recordings
    if len(names) < 2:
        raise UserError(f"diff: {names[0]!r} alone; name two or more to compare")
    # Its `--report` is of another kind of document than a run's.
    shared = argparse.Namespace(row=arguments.row, baselines=arguments.baselines)
    request = request_of(shared)
    recordings = read_all(names, folder=request.baselines, device=arguments.device)
    keys = dict.fromkeys(one.measured.environment.device_key for one in recordings)
    if len(keys) > 1 and not arguments.across_devices:
        raise UserError(
            f"diff: they are of other devices, {' and '.join(keys)}; --across-devices"
            " shows the changes and judges nothing"
        )
    every = {
        row_id: result.row
        for recording in recordings
        for row_id, result in recording.results().items()
    }
    rows = selection.select(
        list(every.values()), request.row, place=" of these recordings", words=None
    )
    found = diff_of(
        recordings,
        # An id of an early revision is not what its row has today.
        ids={row_id for row_id, row in every.items() if row in rows},
        project=request.limits,
        limit=limit,
    )
    if not found.rows:
        raise UserError(f"diff: {' and '.join(names)} have no row in common")
    return found


def parse_limit(text: str) -> float:
    """Parse "5%" or "5" to a share; raises SpecError."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise SpecError("limit", text, "allowed: a percentage from 0 to below 100")
    return share

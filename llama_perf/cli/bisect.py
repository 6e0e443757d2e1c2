"""`llama-perf bisect`: the commit that made a row slower."""

import argparse
import hashlib
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from llama_perf.cli.compare import add_least, parse_least
from llama_perf.cli.ending import code_of
from llama_perf.errors import SpecError, UserError
from llama_perf.files import CHECKOUT, cache_folder
from llama_perf.gate.blocks import Decision
from llama_perf.gate.pairs import PairsGate, change_in_words
from llama_perf.results.run import Environment, Report
from llama_perf.rows.spec import RowSpec
from llama_perf.run.bisection import Mark, Marked, bisect
from llama_perf.run.display import Display
from llama_perf.run.interrupts import Interruptible, described
from llama_perf.run.options import RunRequest
from llama_perf.run.read_options import add_shared, request_of
from llama_perf.run.revision import checked_out, resolve, run_git
from llama_perf.words import counted

if TYPE_CHECKING:
    from llama_perf.run.paired import PairedProcesses

HELP = "find the commit that made a row slower, by pairs of processes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_shared(parser, "--set", "--rows", "--row", "--checkpoints", "--wait")
    add_shared(parser, "--row-timeout", "--report")
    for name, text in (("good", "is fast"), ("bad", "is slow")):
        parser.add_argument(
            f"--{name}", metavar="REV", required=True, help=f"a revision that {text}"
        )
    add_least(parser)


def main(arguments: argparse.Namespace) -> int:
    """Print the first bad commit; 1 where skipped commits hide it."""
    request = request_of(arguments)
    least = parse_least(arguments.least)
    good, bad = (
        resolve(getattr(arguments, name), field=name) for name in ("good", "bad")
    )
    rows = request.selected()
    if len(rows) != 1:
        raise UserError(f"row: {counted(len(rows), 'row')} match; name one by --row")
    if run_git(CHECKOUT, "merge-base", "--is-ancestor", bad, good).returncode == 0:
        reason = f"it has to be a later commit than the good one, {arguments.good}"
        raise SpecError("bad", arguments.bad, reason)
    # They import torch, and a mistake above is reported sooner without.
    from llama_perf.run.lock import locked
    from llama_perf.run.paired import PairedProcesses, Side
    from llama_perf.run.session import Session

    (row,) = rows
    # Another question has another file.
    asked = hashlib.sha256(f"{good} {bad} {row} {least}".encode()).hexdigest()[:12]
    state = cache_folder() / "bisect" / f"{asked}.json"
    display = Display.on(sys.stderr)
    session = Session([row.device], options=request)
    gate = PairsGate(limits=request.limits, target_loss=least)

    with (
        locked(session.device, wait=request.wait, notify=display.note),
        checked_out(good) as base,
    ):
        decide = partial(
            _decided,
            row,
            good=good,
            started=lambda head: PairedProcesses(
                [row], options=request, base=Side(package=base), head=Side(package=head)
            ),
            empty=_empty_report(session.environment, good, request, arguments),
            gate=gate,
            display=display,
        )
        with Interruptible() as block:
            found, marked = bisect(
                good, bad, decide=decide, state=state, note=display.note, root=CHECKOUT
            )
    if block.code is not None:
        display.note(f"{described(block.code)}; the same command goes on")
        return block.code
    # Of those that skipped commits hide, the bad one was measured.
    measured = next(commit for commit in found if marked[commit].mark is Mark.BAD)
    lines = [f"{measured} is the first bad commit"]
    if len(found) > 1:
        lines = ["the first bad commit is one of these, of which some were skipped:"]
        decided = ((commit, marked[commit]) for commit in found)
        lines += [
            f"{commit} ({one.mark.value}): {one.reason}" for commit, one in decided
        ]
    report = replace(marked[measured].report, note=" ".join(lines))
    problems = request.write_reports(report)
    if len(found) == 1:
        lines.append(f"{row.id}: {marked[measured].reason}")
    print(*lines, sep="\n")
    code = code_of(problems)
    return 1 if len(found) > 1 else code


def _empty_report(
    environment: Environment,
    good: str,
    request: RunRequest,
    arguments: argparse.Namespace,
) -> Report:
    """A report that a commit's row is to be put into, beside the good one's."""
    words = [("--good", arguments.good), ("--bad", arguments.bad)]
    words.append(("--least", arguments.least))
    return Report(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment,
        selected=1,
        again=tuple(request.command("bisect", *chain.from_iterable(words))),
        baseline_source=f"{arguments.good}, commit {good[:12]}",
    )


def _decided(
    row: RowSpec,
    commit: str,
    *,
    good: str,
    started: Callable[[Path], "PairedProcesses"],
    empty: Report,
    gate: PairsGate,
    display: Display,
) -> Marked:
    """Compare a commit with the good one, and put its row into the `empty` report.

    `started` gives the processes of the good one and of another one's folder. Raises
    UserError where the good one does not run.
    """
    from llama_perf.run.paired_run import measure_until_decided, with_row

    display.plan_rows([(row, commit[:12])])
    with (
        display.next() as running,
        checked_out(commit) as head,
        closing(started(head)) as processes,
    ):
        pairs = measure_until_decided(row, processes, gate, running.step)
    report = with_row(empty, *gate.compare(pairs), processes)
    if pairs.missed is not None:
        side, result = pairs.missed
        if side == "base":
            raise UserError(f"good: {good[:12]} does not run {row.id}: {result.reason}")
        reason = f"it does not run: {result.reason}"
        return Marked(mark=Mark.SKIP, reason=reason, report=report)
    test = gate.test(pairs)
    assert test is not None, "a row that was measured has two blocks"
    mark = {Decision.SLOWER: Mark.BAD, Decision.UNDECIDED: Mark.SKIP}
    words = f"{change_in_words(test)}, {pairs.way}"
    if test.decision is Decision.UNDECIDED:
        words = f"undecided: {words}"
    decided = mark.get(test.decision, Mark.GOOD)
    return Marked(mark=decided, reason=words, report=report)

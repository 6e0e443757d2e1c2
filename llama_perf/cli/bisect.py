"""`llama-perf bisect`: the commit that made a row slower."""

import argparse
import hashlib
import sys
from functools import partial
from pathlib import Path

from llama_perf.cli.compare import add_least, parse_least
from llama_perf.errors import SpecError, UserError
from llama_perf.files import CHECKOUT, cache_folder
from llama_perf.gate.blocks import Decision
from llama_perf.gate.pairs import PairsGate, change_in_words
from llama_perf.rows.spec import RowSpec
from llama_perf.run.bisection import Mark, Marked, bisect
from llama_perf.run.display import Display
from llama_perf.run.interrupts import Interruptible, described
from llama_perf.run.options import RunRequest
from llama_perf.run.read_options import add_shared, request_of
from llama_perf.run.revision import checked_out, resolve, run_git
from llama_perf.words import counted

HELP = "find the commit that made a row slower, by pairs of processes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_shared(parser, "--set", "--rows", "--row", "--checkpoints", "--wait")
    add_shared(parser, "--row-timeout")
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
            base=base,
            gate=gate,
            options=request,
            display=display,
        )
        with Interruptible() as block:
            found, marked = bisect(
                good, bad, decide=decide, state=state, note=display.note, root=CHECKOUT
            )
    if block.code is not None:
        display.note(f"{described(block.code)}; the same command goes on")
        return block.code
    if len(found) > 1:
        print("the first bad commit is one of these, of which some were skipped:")
        for commit in found:
            print(f"{commit} ({marked[commit].mark.value}): {marked[commit].reason}")
        return 1
    (commit,) = found
    print(f"{commit} is the first bad commit")
    print(f"{row.id}: {marked[commit].reason}")
    return 0


def _decided(
    row: RowSpec,
    commit: str,
    *,
    good: str,
    base: Path,
    gate: PairsGate,
    options: RunRequest,
    display: Display,
) -> Marked:
    """Compare a commit with the good one, whose files are in the folder `base`.

    Raises UserError where the good one does not run.
    """
    from llama_perf.run.paired import Side
    from llama_perf.run.paired_run import compare_sides

    display.plan_rows([(row, commit[:12])])
    with display.next() as running, checked_out(commit) as head:
        pairs = compare_sides(
            row,
            gate,
            options=options,
            base=Side(package=base),
            head=Side(package=head),
            progress=running.step,
        )
    if pairs.missed is not None:
        side, result = pairs.missed
        if side == "base":
            raise UserError(f"good: {good[:12]} does not run {row.id}: {result.reason}")
        return Marked(mark=Mark.SKIP, reason=f"it does not run: {result.reason}")
    test = gate.test(pairs)
    assert test is not None, "a row that was measured has two blocks"
    mark = {Decision.SLOWER: Mark.BAD, Decision.UNDECIDED: Mark.SKIP}
    words = f"{change_in_words(test)}, {pairs.way}"
    if test.decision is Decision.UNDECIDED:
        words = f"undecided: {words}"
    return Marked(mark=mark.get(test.decision, Mark.GOOD), reason=words)

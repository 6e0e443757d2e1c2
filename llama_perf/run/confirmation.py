"""A row that looks slower or larger: what else runs, so that the gate can decide.

Pairs of the baseline's commit with this checkout decide on the speed, where git has the
commit and the environment is the baseline's; otherwise fresh processes do, against the
stored figures. Fresh processes decide on a peak. `gate/` has the verdicts.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from llama_perf.errors import UserError
from llama_perf.gate.blocks import Decision
from llama_perf.gate.evidence import Confirmation, PairsTest
from llama_perf.gate.pairs import SIDES, PairsGate, change_in_words
from llama_perf.gate.speed_baseline import SpeedBaseline
from llama_perf.results.baselines import Baseline, BaselineRow
from llama_perf.results.run import Comparison, Environment, Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run.fresh_processes import in_confirmation
from llama_perf.run.options import RunRequest
from llama_perf.run.paired import Side
from llama_perf.run.paired_run import compare_sides
from llama_perf.run.revision import checked_out, resolve

Progress = Callable[[str], None]


class _Decided(NamedTuple):
    """Pairs of a commit with this checkout: the speed's test, and the whole verdict."""

    speed: PairsTest
    comparison: Comparison


def confirm(
    row: RowSpec,
    comparison: Comparison,
    baseline: SpeedBaseline,
    *,
    unquantized: RowSpec | None,
    options: RunRequest,
    progress: Progress,
) -> Confirmation:
    """Run what decides on a row that is doubtful by its `comparison`.

    `unquantized` is the row that it is compared with, if there is one.
    """
    pairs, no_pairs = None, ""
    if comparison.suspicious:
        recorded_in = _environment_of(baseline.rows[row.id], baseline.stored)
        commit, no_pairs = _commit_of(recorded_in, baseline.environment)
        if commit is not None:
            name = f"the baseline's commit {commit}"
            decided, no_pairs = _pairs_with(row, commit, name, options, progress)
            pairs = None if decided is None else decided.speed
    fresh = []
    if comparison.suspicious_peak or pairs is None:
        other = unquantized if pairs is None else None
        fresh = in_confirmation(row, other, options=options, progress=progress)
    return Confirmation(fresh=fresh, pairs=pairs, no_pairs=no_pairs)


def blame(
    row: RowSpec, comparison: Comparison, *, options: RunRequest, progress: Progress
) -> Comparison:
    """The verdict on a worse row by the revision that the change starts from.

    A row that is no worse than that one was slower, or larger, before the change.
    """
    base, slower = str(options.base), comparison.verdict is Verdict.SLOWER
    decided, problem = _pairs_with(row, resolve(base), base, options, progress)
    if decided is None:
        return replace(comparison, reason=f"{comparison.reason}; {problem}")
    words, against_base = decided.speed.words, decided.comparison
    if decided.speed.test.decision not in {Decision.SAME, Decision.FASTER}:
        return replace(comparison, reason=f"{comparison.reason}; {words}")
    worse = "slower" if slower else "larger"
    reason = (
        f"{base} is {worse} than the baseline already, and this is no {worse} than"
        f" {base}: {words}; {comparison.reason}"
    )
    if against_base.verdict is Verdict.LARGER:
        then = reason if slower else comparison.reason
        return replace(
            comparison,
            verdict=Verdict.LARGER,
            why=against_base.why,
            reason=f"against {base}: {against_base.reason}; {then}",
        )
    verdict = Verdict.ALREADY_SLOWER if slower else Verdict.ALREADY_LARGER
    return replace(comparison, verdict=verdict, failed=False, reason=reason)


def rows_by_pairs(baseline: Baseline, environment: Environment) -> list[str]:
    """The ids of the rows that pairs with the baseline's commit can decide on."""
    recorded_in = {row.id: _environment_of(row, baseline) for row in baseline.rows}
    # Most rows share one environment, and git is asked once for each.
    commits = {one: _commit_of(one, environment)[0] for one in {*recorded_in.values()}}
    return [row_id for row_id, one in recorded_in.items() if commits[one] is not None]


def _environment_of(row: BaselineRow, baseline: Baseline) -> Environment:
    return row.environment or baseline.environment


def _commit_of(stored: Environment, environment: Environment) -> tuple[str | None, str]:
    """The commit of a baseline, or None and why no pairs can run with it.

    `stored` is the environment it was recorded in, `environment` that of this run.
    """
    if changed := stored.changes(environment):
        return None, (
            "no pairs, since the environment changed:"
            f" {'; '.join(changed)} (llama-perf compare --base-python judges that)"
        )
    if stored.commit is None:
        return None, "no pairs, since the baseline names no commit"
    try:
        resolve(stored.commit)
    except UserError:
        return None, f"no pairs, since git has no commit {stored.commit} here"
    return stored.commit, ""


def _pairs_with(
    row: RowSpec, commit: str, name: str, options: RunRequest, progress: Progress
) -> tuple[_Decided | None, str]:
    """What pairs of a commit with this checkout decide, or None and why there are none.

    `name` says in words what the commit is.
    """
    gate = PairsGate(limits=options.limits)
    with checked_out(commit) as package:
        base_side = Side(package=package)
        pairs = compare_sides(
            row, gate, options=options, base=base_side, progress=progress
        )
    test = gate.test(pairs)
    if pairs.missed is not None or test is None:
        side, result = pairs.missed or ("base", None)
        why = "too few blocks" if result is None else result.reason
        return None, f"no pairs with {name}: {side}: {why}"
    words = f"{change_in_words(test)} against {name} in pairs, {pairs.way}"
    (base, *_), (head, *_) = map(pairs.measurements, SIDES)
    speed = PairsTest(
        test=test, words=words, base=base, head=head, processes=pairs.processes("head")
    )
    return _Decided(speed, gate.compare(pairs)[1]), ""

"""What a reviewer of `baselines/` asks: whether a baseline is good enough.

Pure functions on baselines; their answers are lines of text.
"""

from collections.abc import Container, Iterator, Mapping

from llama_perf.gate.judgements import limits_of
from llama_perf.gate.speed_baseline import Basis, SpeedBaseline
from llama_perf.gate.thresholds import MIN_PROCESSES, Losses, Spread
from llama_perf.results.baselines import Baseline, BaselineRow
from llama_perf.rows.limit_overrides import Limits, ProjectLimits
from llama_perf.rows.spec import RowSpec

# With a larger deviation between processes only a collapse of the speed is detected.
_MAX_DEVIATION = 0.10
MAX_DETECTABLE = 0.25
"""The loss that a recorded row should find nine times in ten: with so much lost, a user
sees it without a gate."""


def problems(
    stored: Baseline, known: Mapping[str, RowSpec], project: ProjectLimits = ()
) -> Iterator[str]:
    """The defects of a baseline; `known` are the rows of all sets by id.

    `project` has a user's limits.
    """
    baseline = SpeedBaseline(stored)
    for row, limits, judged in _judged(baseline, known, project):
        if row.id not in known:
            yield (
                f"{row.id}: in no set, so nothing is compared with it; if a file of"
                " your own has it, name that file: --rows FILE"
            )
        elif known[row.id].fingerprint != row.fingerprint:
            yield f"{row.id}: the row changed since: record it again"
        if row.measurement.injected_slowdown:
            yield f"{row.id}: measured with an injected slowdown"
        if judged is None:
            yield f"{row.id}: {_fixed(baseline, row.id, limits)}"
        elif judged[1].deviation > _MAX_DEVIATION:
            basis, spread, losses = judged
            yield (
                f"{row.id}: processes differ by {spread.deviation:.2%} in"
                f" {basis.value}; without pairs: {losses}; record it on a quieter"
                " machine"
            )
        other = row.environment
        if other is not None and (changes := other.changes(stored.environment)):
            yield f"{row.id}: of another environment: {'; '.join(changes)}"


def _judged(
    baseline: SpeedBaseline, known: Mapping[str, RowSpec], project: ProjectLimits
) -> Iterator[tuple[BaselineRow, Limits, tuple[Basis, Spread, Losses] | None]]:
    """Each stored row with its limits and what its figures can show.

    `known` and `project` are those of `problems`.
    """
    for row in baseline.stored.rows:
        limits = limits_of(known.get(row.id, row.row), project)
        yield row, limits, baseline.losses(row.id, limits["least_loss"])


def describe_speeds(
    stored: Baseline,
    known: Mapping[str, RowSpec],
    project: ProjectLimits = (),
    *,
    ids: Container[str],
) -> Iterator[str]:
    """A line for each row among `ids` that several processes measured: its noise.

    `known` and `project` are those of `problems`.
    """
    baseline = SpeedBaseline(stored)
    for row, limits, judged in _judged(baseline, known, project):
        if (deviation := row.between_process_deviation) is None or row.id not in ids:
            continue
        differ = f"{row.id}: {len(row.samples)} processes differ by {deviation:.2%}"
        if judged is None:
            yield f"{differ}; {_fixed(baseline, row.id, limits)}"
            continue
        basis, spread, losses = judged
        yield (
            f"{differ} ({spread.deviation:.2%} in {basis.value}, estimated with the"
            f" other rows); without pairs: {losses}"
        )


def _fixed(baseline: SpeedBaseline, row_id: str, limits: Limits) -> str:
    """Why the limit of a row does not follow from its noise."""
    count = min(map(len, baseline.judged_speeds(row_id).values()))
    return (
        f"{count} of the {MIN_PROCESSES} processes from which noise is estimated, so"
        f" the limit is fixed: {limits['tok_s']:.1%}"
    )


def warnings(
    recorded: Baseline,
    known: Mapping[str, RowSpec],
    project: ProjectLimits = (),
    *,
    ids: Container[str],
) -> Iterator[str]:
    """What to say of rows among `ids` that are recorded and find only large losses.

    `known` and `project` are those of `problems`.
    """
    is_any = False
    for row, _, judged in _judged(SpeedBaseline(recorded), known, project):
        if row.id in ids and judged is not None and judged[2].found > MAX_DETECTABLE:
            is_any = True
            yield f"warning: {row.id}: without pairs: {judged[2]}"
    if is_any:
        yield (
            "warning: record it on a quieter machine, or with more tokens a generation"
            " (max_new_tokens)"
        )

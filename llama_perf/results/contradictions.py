"""What a stored record says twice and differently: it was edited, or merged badly.

Each function yields lines "FIELD: what is wrong". An honest file has none of them.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import median

from llama_perf.errors import RecordError
from llama_perf.results.measurement import Measurement
from llama_perf.results.processes import Sampled, deviation, median_speed
from llama_perf.results.ranks import summed
from llama_perf.rows.spec import RowSpec
from llama_perf.words import counted, shown

# The speed and the samples that it follows from are stored as they were computed.
_ROUNDING = 1e-6


def refuse(lines: Iterable[str], *, source: str) -> None:
    """Raise RecordError that names `source` and the first of `lines`, if there is one.

    It says how many more there are.
    """
    found = list(lines)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise RecordError(f"{source}: {found[0]}{more}")


def of_ids(ids: Sequence[str], *, where: str) -> Iterator[str]:
    """Ids that are there twice."""
    seen: set[str] = set()
    for number, row_id in enumerate(ids):
        if row_id in seen:
            yield f"{where}.{number}.id: {row_id!r} is there twice"
        seen.add(row_id)


def of_id(row_id: str, row: RowSpec, *, where: str) -> Iterator[str]:
    """An id that is not its row's."""
    if row_id != row.id:
        yield (
            f"{where}.id: {row_id!r} is not the id of its row, {row.id!r}: one of them"
            f" was edited; {_REMEDY}"
        )


def of_row(row_id: str, fingerprint: str, row: RowSpec, *, where: str) -> Iterator[str]:
    """An id or a fingerprint that is not its row's."""
    if fingerprint == row.first_fingerprint:
        return
    yield from of_id(row_id, row, where=where)
    if fingerprint != row.fingerprint:
        yield (
            f"{where}.fingerprint: {fingerprint!r} is not that of its row,"
            f" {row.fingerprint!r}: the row was edited under its fingerprint; {_REMEDY}"
        )


OF_NO_PROCESS = "its figures are those of none of its processes"
_REMEDY = "undo that, or record the row again"


def of_speed(measured: Sampled, row: RowSpec, *, where: str) -> Iterator[str]:
    """A speed that does not follow from its samples."""
    if not measured.sample_ns:
        return
    if min(measured.sample_ns) <= 0:
        yield f"{where}.sample_ns: {min(measured.sample_ns)} ns; allowed: more than 0"
        return
    tokens = row.batch_size * row.max_new_tokens
    try:
        middle_ns = float(median(measured.sample_ns))
    except OverflowError:
        yield f"{where}.sample_ns: they are beyond any float"
        return
    if abs(tokens * 1e9 / measured.tok_s - middle_ns) > max(1, _ROUNDING * middle_ns):
        yield (
            f"{where}.tok_s: {measured.tok_s} does not follow from its samples: they"
            f" have {tokens * 1e9 / middle_ns}"
        )


def of_speeds(
    processes: Sequence[Sampled], row: RowSpec, *, where: str
) -> Iterator[str]:
    """Processes whose speeds do not follow from their samples."""
    for number, process in enumerate(processes):
        yield from of_speed(process, row, where=f"{where}.processes.{number}")


def of_ranks(measured: Measurement, row: RowSpec, *, where: str) -> Iterator[str]:
    """Figures of a row that are not those of its ranks, or ranks that it has not."""
    ranks = measured.ranks
    count = 1 if ranks is None else len(ranks.each)
    if count != row.ranks or (ranks is not None and count == 1):
        yield f"{where}.ranks: those of {count}, and its row has {row.ranks}"
        return
    if ranks is None:
        return
    own = {
        "peak_memory_bytes": max(one.peak_memory_bytes for one in ranks.each),
        "model_size_bytes": sum(one.model_size_bytes for one in ranks.each),
        "device_bandwidth_gb_s": summed(
            one.device_bandwidth_gb_s for one in ranks.each
        ),
    }
    for name, value in own.items():
        if (stored := getattr(measured, name)) != value:
            yield f"{where}.{name}: {stored} is not that of its ranks, {value}"
    if ranks.all_reduces <= 0 or ranks.all_reduce_bytes % ranks.all_reduces:
        sums = counted(ranks.all_reduces, "sum")
        yield f"{where}.ranks.all_reduce_bytes: {ranks.all_reduce_bytes} in {sums}"
    for number, one in enumerate(ranks.each):
        if (own_count := len(one.sample_ns)) != len(measured.sample_ns):
            times = counted(own_count, "sample")
            problem = f"{times}, and its row has {len(measured.sample_ns)}"
            yield f"{where}.ranks.each.{number}.sample_ns: {problem}"
            return
    of_ranks = zip(*(one.sample_ns for one in ranks.each), strict=True)
    if measured.sample_ns != (longest := tuple(map(max, of_ranks))):
        shown_ns = f"{list(measured.sample_ns)} are not those of the slowest rank"
        yield f"{where}.sample_ns: {shown_ns}, {list(longest)}"


def of_processes(
    measured: Sampled,
    processes: Sequence[Sampled],
    stored_deviation: float | None,
    *,
    where: str,
) -> Iterator[str]:
    """Processes of which only some have a figure, and what does not follow from them.

    That is a deviation that is not theirs, or a speed that is not their median.
    """
    own = deviation(processes)
    close = (
        stored_deviation and own and math.isclose(stored_deviation, own, rel_tol=1e-6)
    )
    if stored_deviation != own and not close:
        yield (
            f"{where}.between_process_deviation: {shown(stored_deviation)} is not"
            f" allowed; that of {counted(len(processes), 'process')} is {shown(own)}"
        )
    yield from of_middle(measured, processes, where=where)


def of_middle(
    measured: Sampled, processes: Sequence[Sampled], *, where: str
) -> Iterator[str]:
    """Processes of which some lack a figure, and a speed that is not their median."""
    for name, has in (
        ("device_bandwidth_gb_s", [one.device_bandwidth_gb_s for one in processes]),
        ("sample_ns", [one.sample_ns for one in processes]),
    ):
        if any(has) and not all(has):
            yield f"{where}.processes: only some of them have {name}"
    middle = median_speed(processes).tok_s
    if measured.tok_s != middle:
        yield (
            f"{where}.measurement.tok_s: {measured.tok_s} is not the median of its"
            f" processes, {middle}"
        )

"""What a row's speed is compared by: itself, or a ratio that needs no same machine.

On the very card of the baseline tok/s are compared. On another card of its model, and
on any CPU, what is compared is a row's share of something measured in the same run:
of the unquantized row's tok/s, or of the device's bandwidth. Knows no verdict.
"""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum

from llama_perf.results.baseline import Baseline, BaselineRow
from llama_perf.results.environment import Environment
from llama_perf.results.measurement import Measurement
from llama_perf.rows.spec import RowSpec


class Basis(Enum):
    """Each is named as the metric that is shown."""

    TOK_S = "tok/s"
    RATIO = "tok/s over the unquantized row's"
    BANDWIDTH = "tok/s per GB/s of the device"


def bases(row: RowSpec, baseline: Baseline, environment: Environment) -> list[Basis]:
    """What the speed of `row`, measured in `environment`, is compared by.

    Any of them that lost makes the row slower.
    """
    stored = baseline.environment
    if row.device == "cuda" and _same_card(stored, environment):
        return [Basis.TOK_S]
    if not quantized(row):
        return [Basis.BANDWIDTH]
    # A processor's bandwidth is a poor measure of what its packed products take.
    one = [Basis.RATIO]
    return [*one, Basis.BANDWIDTH] if row.device == "cuda" else one


def _same_card(stored: Environment, now: Environment) -> bool:
    """A card that did not tell which one it is counts as another."""
    return (
        stored.device_uuid is not None
        and stored.device_uuid == now.device_uuid
        and stored.driver == now.driver
    )


def quantized(row: RowSpec) -> bool:
    """Whether its weights or its cache are."""
    return row.quantization is not None or row.kv_cache is not None


def unquantized_row(row: RowSpec, baseline: Baseline) -> BaselineRow | None:
    """The unquantized row of `baseline` that is most like `row`, None without one.

    Of the same model, device and batch, recorded together with it, and with the fewest
    other fields that differ; the first of several.
    """
    stored = row_of(baseline, row.id)
    if stored is None:
        return None
    candidates = [
        each
        for each in baseline.rows
        if not quantized(each.row)
        and each.recorded == stored.recorded
        and all(
            getattr(each.row, name) == getattr(row, name)
            for name in ("model", "device", "batch_size")
        )
    ]
    return min(candidates, key=lambda each: _differences(each.row, row), default=None)


def _differences(one: RowSpec, other: RowSpec) -> int:
    theirs = asdict(other)
    return sum(value != theirs[name] for name, value in asdict(one).items())


def row_of(baseline: Baseline, row_id: str) -> BaselineRow | None:
    """The row of that id, or None."""
    return next((row for row in baseline.rows if row.id == row_id), None)


def value(
    basis: Basis, measured: Measurement, unquantized: Measurement | None
) -> float | None:
    """One measurement's; None where what it is compared by was not measured."""
    of = {
        Basis.TOK_S: 1.0,
        Basis.RATIO: None if unquantized is None else unquantized.tok_s,
        Basis.BANDWIDTH: measured.device_bandwidth_gb_s,
    }[basis]
    return None if of is None else measured.tok_s / of


def stored_values(
    basis: Basis, row: BaselineRow, unquantized: BaselineRow | None
) -> list[float] | None:
    """The same for each process of a stored row, one where it has just one.

    The n-th process of a row ran beside the n-th of the unquantized one.
    """
    rates, bandwidths = _of_processes(row)
    of: list[float | None] = [1.0] * len(rates)
    if basis is Basis.BANDWIDTH:
        of = bandwidths
    elif basis is Basis.RATIO:
        of = [None] if unquantized is None else [*_of_processes(unquantized)[0]]
    if None in of:
        return None
    return [rate / other for rate, other in zip(rates, of, strict=False) if other]


def _of_processes(row: BaselineRow) -> tuple[list[float], list[float | None]]:
    """tok/s and the device's bandwidth of each."""
    each = row.processes or (row.measurement,)
    return [one.tok_s for one in each], [one.device_bandwidth_gb_s for one in each]

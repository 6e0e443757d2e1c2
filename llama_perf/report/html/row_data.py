"""What the charts of one row show, as plain values: its figures beside its baseline's.

A page of many rows has these values for each row, and one spec for all of them. Knows
no library that draws.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from statistics import median

from llama_perf.report.html.chart_values import Datum, rounded
from llama_perf.results.measurement import GB, Measurement, StepWork
from llama_perf.results.processes import ProcessSamples
from llama_perf.results.run import Before, Comparison, RowResult
from llama_perf.results.token_times import percentile_ms
from llama_perf.rows.spec import RowSpec

SAMPLES, STEP, MEMORY, TOKENS = "row-samples", "row-step", "row-memory", "row-tokens"
NOW, BEFORE = "now", "baseline"
LEAST_TOKENS = 100
"""Of fewer tokens no share of a hundredth is known."""
_MOST_OPERATORS = 6
_LONGEST = 48
_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)

# With the numbers in the chart: 0 for what stands for parts that are not known.
_MEMORY = {"tensors": 0, "peak": 0, "weights": 1, "cache": 2, "workspace": 3, "rest": 4}

RowData = dict[str, list[Datum]]


def row_data(result: RowResult, comparison: Comparison | None) -> RowData:
    """The values of each chart by its name; a chart of none is empty.

    They are those of the data source of the same name in `row_charts`.
    """
    before = None if comparison is None else comparison.before
    processes = None if comparison is None else comparison.processes
    figures, row = result.measurement, result.row
    then = None if before is None else before.measurement
    if figures is None:
        return {SAMPLES: [], STEP: [], MEMORY: [], TOKENS: []}
    both = [(NOW, figures), *([] if then is None else [(BEFORE, then)])]
    return {
        SAMPLES: list(_samples(row, figures, processes or (), before)),
        STEP: _step(row, both),
        MEMORY: [*chain(*(_memory(when, one) for when, one in both))],
        TOKENS: list(_tokens(figures)),
    }


def _samples(
    row: RowSpec,
    figures: Measurement,
    processes: Sequence[ProcessSamples],
    before: Before | None,
) -> Iterator[Datum]:
    tokens = row.batch_size * row.max_new_tokens
    stored = () if before is None else before.processes
    of_processes = chain.from_iterable(one.sample_ns for one in stored)
    groups = {
        f"{NOW}: samples": _rates(tokens, figures.sample_ns),
        f"{NOW}: processes": [one.tok_s for one in processes],
        f"{BEFORE}: processes": [one.tok_s for one in stored],
        f"{BEFORE}: samples": _rates(tokens, of_processes),
    }
    for group, rates in groups.items():
        for rate in rates:
            yield {"group": group, "tok_s": rounded(rate, 5)}
        if rates:
            middle = rounded(median(rates), 5)
            yield {"group": group, "tok_s": middle, "median": True}


def _rates(tokens: int, sample_ns: Iterable[int]) -> list[float]:
    return [tokens * 1e9 / ns for ns in sample_ns if ns > 0]


def _step(row: RowSpec, both: Sequence[tuple[str, Measurement]]) -> list[Datum]:
    """The ms of a step by operator; the longest of either side have their names."""
    steps = {when: one.step for when, one in both if one.step is not None}
    longest: dict[str, float] = {}
    for operator in chain(*(step.operators for step in steps.values())):
        longest[operator.name] = max(operator.ms, longest.get(operator.name, 0.0))
    named = sorted(longest, key=lambda name: -longest[name])[:_MOST_OPERATORS]
    data = []
    for when, figures in both:
        if figures.step is None:
            continue
        for number, (name, ms) in enumerate(
            _parts_of_step(row, figures, figures.step, named), start=1
        ):
            if ms > 0:
                data.append(_part(when, number, name, ms))
        if figures.decode_tok_s is not None:
            data.append(
                {"when": when, "measured": rounded(_step_ms(row, figures.decode_tok_s))}
            )
    return data


def _step_ms(row: RowSpec, decode_tok_s: float) -> float:
    """The ms of a step, in which each sequence gets a token."""
    return row.batch_size * 1e3 / decode_tok_s


def _parts_of_step(
    row: RowSpec, figures: Measurement, step: StepWork, named: Sequence[str]
) -> Iterator[tuple[str, float]]:
    times = {operator.name: operator.ms for operator in step.operators}
    shown = [times.get(name, 0.0) for name in named]
    yield from zip(named, shown, strict=True)
    yield "other operators", step.ms - sum(shown)
    if figures.decode_tok_s is not None:
        yield "outside operators", _step_ms(row, figures.decode_tok_s) - step.ms


def _memory(when: str, figures: Measurement) -> Iterator[Datum]:
    """The GB of the peak by what takes them, as far as that is known."""
    peak, allocated = figures.peak_memory_bytes, figures.peak_allocated_bytes
    parts: dict[str, int] = {}
    if figures.memory is not None:
        parts["weights"] = figures.memory.weights_bytes
        parts["cache"] = figures.memory.cache_bytes
        if allocated is not None:
            parts["workspace"] = allocated - sum(parts.values())
    elif allocated is not None:
        parts["tensors"] = allocated
    parts["rest" if parts else "peak"] = peak - sum(parts.values())
    for name, number in _MEMORY.items():
        if parts.get(name, 0) > 0:
            yield _part(when, number, name, parts[name] / GB)


def _part(when: str, number: int, name: str, value: float) -> Datum:
    short = name.removeprefix("void ")
    short = short if len(short) <= _LONGEST else f"{short[:_LONGEST]}..."
    part = {"when": when, "part": f"{number} {short}", "value": rounded(value)}
    return part if short == name else {**part, "name": name}


def _tokens(figures: Measurement) -> Iterator[Datum]:
    """The percentiles of the tokens' times, which are kept of this run only."""
    if sum(map(len, figures.token_ns or ())) < LEAST_TOKENS:
        return
    for percent in _PERCENTILES:
        if (time_ms := percentile_ms(figures.token_ns, percent)) is not None:
            yield {"percent": percent, "ms": rounded(time_ms)}

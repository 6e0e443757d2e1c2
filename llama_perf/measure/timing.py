"""Prepared -> Measurement: warm-up, timed generations, memory.

Times are read on the device: CUDA events there, the host's clock on CPU. Knows no
baseline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llama_perf.devices.device import release_memory
from llama_perf.errors import ThrottledError
from llama_perf.measure.allocated import allocated_peak
from llama_perf.measure.gpu_state import CardWatch
from llama_perf.measure.memory import MemoryMeter
from llama_perf.measure.prepare import Prepared
from llama_perf.measure.step_profile import step_work
from llama_perf.measure.value_check import check_values, warm_up
from llama_perf.results.measurement import (
    GB,
    Ceiling,
    Measurement,
    median_rate,
    median_seconds,
)
from llama_perf.rows.spec import RowSpec

Progress = Callable[[str], None]
SAMPLES_BUDGET_S = {"cuda": 20.0}
"""Seconds of samples a row of a run, by its device; none: all that it asks for."""
LEAST_SAMPLES = 3
"""Samples that a row takes whatever its budget, where it asks for as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One generation: all of it, and up to the first new token, in ns.

    `tokens` is what was generated, prompt included, int64 (batch, length).
    """

    total_ns: int
    first_token_ns: int
    tokens: Tensor


def time_generation(prepared: Prepared, generator: torch.Generator) -> Sample:
    """Run the row's generation once and time it."""
    row = prepared.row
    marks = _CudaMarks() if row.device == "cuda" else _HostMarks()
    marks.mark()
    tokens = prepared.engine.generate(
        prepared.prompt,
        max_new_tokens=row.max_new_tokens,
        lengths=prepared.lengths,
        temperature=row.temperature,
        top_k=row.top_k,
        generator=generator,
        after_prefill=marks.mark,
    )
    marks.mark()
    start, first, end = marks.times_ns()
    return Sample(total_ns=end - start, first_token_ns=first - start, tokens=tokens)


class _HostMarks:
    def __init__(self) -> None:
        self._times: list[int] = []

    def mark(self) -> None:
        self._times.append(time.perf_counter_ns())

    def times_ns(self) -> list[int]:
        return self._times


class _CudaMarks:
    """Events on the stream the row runs on; read after one synchronisation."""

    def __init__(self) -> None:
        torch.cuda.synchronize()
        self._events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)

    def times_ns(self) -> list[int]:
        torch.cuda.synchronize()
        start = self._events[0]
        return [round(start.elapsed_time(event) * 1e6) for event in self._events]


def measure(
    prepared: Prepared,
    *,
    meter: MemoryMeter,
    ceiling: Ceiling | None = None,
    slowdown: float = 0.0,
    damaged: bool = False,
    count_work: bool = False,
    samples_budget_s: float | None = None,
    progress: Progress = lambda _text: None,
    after_sample: Callable[[Sample], None] = lambda _sample: None,
) -> Measurement:
    """Warm up once, then take the row's samples, fewer where they exceed the budget.

    `meter` was created before the row was built. The peak that is reported is that
    of the samples, after the warm-up, as in the reference; the build's stands apart.
    The values of the warm-up are checked, `damaged` with one of the row's scales wrong,
    to see that fail. `count_work`: also what a step calls, by a profiler,
    outside the samples. Raises ThrottledError where the card was throttled, ValuesError
    where values are wrong.
    """
    row = prepared.row
    device = prepared.engine.model.device
    # Steps that a slowdown repeats are no work of the row's.
    count_work = count_work and slowdown == 0
    build_peak_bytes = meter.peak_bytes()
    release_memory(device)
    generator = torch.Generator(device=device).manual_seed(0)
    start = time.perf_counter()
    progress("compiling and warming up" if row.compile else "warming up")
    observed = warm_up(prepared, generator, damaged=damaged)
    if device.type == "cuda":
        torch.cuda.synchronize()
    warm_up_s = time.perf_counter() - start
    check = check_values(prepared, observed)
    del observed
    step, counted_bytes = None, None
    if count_work and row.device == "cpu":
        # Before the samples, and its events freed: they are no part of the peak.
        step = step_work(prepared)
        counted_bytes = allocated_peak(prepared)
    release_memory(device)
    meter.reset_peak()
    samples: list[Sample] = []
    watch = CardWatch(device)
    watch.look()
    while more_samples(samples, most=row.num_samples, budget_s=samples_budget_s):
        progress(f"sample {len(samples) + 1} of {row.num_samples}")
        samples.append(time_generation(prepared, generator))
        watch.look()
        after_sample(samples[-1])
    if (reason := watch.spoiled()) is not None:
        raise ThrottledError(reason)
    peak_bytes = meter.peak_bytes()
    peak_allocated = counted_bytes or meter.peak_allocated_bytes()
    if count_work and row.device == "cuda":
        # After them: a profiler may leave its hooks in the driver.
        step = step_work(prepared)
    totals = tuple(sample.total_ns for sample in samples)
    firsts = tuple(sample.first_token_ns for sample in samples)
    decodes = [total - first for total, first in zip(totals, firsts, strict=True)]
    tok_s = median_rate(row.batch_size * row.max_new_tokens, totals)
    decoded = row.batch_size * (row.max_new_tokens - 1)
    graph_breaks, compilations = _compiler_counts() if row.compile else (None, None)
    return Measurement(
        tok_s=tok_s,
        decode_tok_s=median_rate(decoded, decodes) if decoded else None,
        time_to_first_token_s=median_seconds(firsts),
        bandwidth_gb_s=prepared.model_size_bytes * tok_s / row.batch_size / GB,
        device_bandwidth_gb_s=None if ceiling is None else ceiling.bandwidth_gb_s,
        ceiling=ceiling,
        peak_memory_bytes=peak_bytes,
        peak_allocated_bytes=peak_allocated,
        build_peak_bytes=build_peak_bytes,
        model_size_bytes=prepared.model_size_bytes,
        weights=prepared.weights,
        build_s=prepared.build_s,
        warm_up_s=warm_up_s,
        graph_breaks=graph_breaks,
        compilations=compilations,
        injected_slowdown=slowdown,
        autoquant=prepared.autoquant,
        step=step,
        check=check,
        **_of_card(watch, row, taken=len(samples)),
        samples_budget_s=samples_budget_s,
        sample_ns=totals,
        first_token_ns=firsts,
    )


def more_samples(taken: Sequence[Sample], *, most: int, budget_s: float | None) -> bool:
    """Whether another sample is taken: one as long as the others is in the budget."""
    if len(taken) >= most:
        return False
    if budget_s is None or len(taken) < LEAST_SAMPLES:
        return True
    spent_s = sum(each.total_ns for each in taken) / 1e9
    return spent_s + spent_s / len(taken) <= budget_s


def _of_card(watch: CardWatch, row: RowSpec, *, taken: int) -> dict[str, Any]:
    if row.device != "cuda":
        return {}
    joules = watch.joules()
    tokens = row.batch_size * row.max_new_tokens * taken
    return {
        "joules_per_token": None if joules is None else joules / tokens,
        "card": tuple(watch.states) or None,
        "card_problem": watch.problem,
        "neighbours": watch.others() or None,
    }


def without_kept(measurement: Measurement, kept_bytes: int) -> Measurement:
    """Its peaks without what the process kept of them when the row was gone."""
    build_peak_bytes = measurement.build_peak_bytes
    return replace(
        measurement,
        peak_memory_bytes=max(measurement.peak_memory_bytes - kept_bytes, 0),
        build_peak_bytes=None
        if build_peak_bytes is None
        else max(build_peak_bytes - kept_bytes, 0),
    )


def _compiler_counts() -> tuple[int, int]:
    """Graph breaks and compiled graphs since the compiler was last reset."""
    from torch._dynamo.utils import counters

    return sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"]

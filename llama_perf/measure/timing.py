"""PreparedRow -> Measurement: warm-up, timed generations, memory.

Times are read on the device: by CUDA events there, by the host's clock on a CPU. On a
CPU the resident set is counted over its size once the row is gone: libraries loaded and
code compiled on the way stay behind and are not the row's. It differs by tens of
megabytes between processes that do the same; the bytes that tensors ask for do not.
Knows no baseline.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor

from llama_perf.devices.device import device_of
from llama_perf.devices.ranks import from_every_rank
from llama_perf.errors import UserError
from llama_perf.llama.compiler import compiled_anew
from llama_perf.llama.row_engine import RowEngine
from llama_perf.llama.transformer import tensor_bytes
from llama_perf.measure.closeness import closeness_db
from llama_perf.measure.gpu_state import GpuWatch
from llama_perf.measure.prepare import PreparedRow
from llama_perf.measure.ranks import (
    check_same_tokens,
    first_told,
    ranks_of,
    slowest,
    start_together,
)
from llama_perf.measure.step_profile import Work, count_work
from llama_perf.measure.system_load import LoadWatch
from llama_perf.measure.value_check import check_row_values, warm_up_row
from llama_perf.results.measurement import GB, Measurement, MemoryParts

Progress = Callable[[str], None]
MIN_SAMPLES = 2
"""Samples that a row takes whatever its budget, where it asks for as many."""
MAX_WARM_UPS = 4
"""Generations before the samples, at most: a row may drift for minutes."""
# Generations with and without repeated steps that say how long those take.
_CALIBRATIONS = 3
# Two generations that differ by less are alike: docs/gate-why.md has what was seen.
_STEADY_SHARE = 0.1
# A scheduler's turns, which are more than that of a tiny model's generation.
_STEADY_NS = 10_000_000


class RowMemoryMeter:
    """Peaks of one row. Create it before the row takes any memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device_of(device)
        self._device.release_memory()
        self._base_bytes = self._device.retained_bytes()
        self._device.reset_peak()

    def peak_bytes(self) -> int:
        """CUDA: `max_memory_reserved()`, as in the reference; CPU: resident growth."""
        return max(self._device.peak_bytes() - self._base_bytes, 0)

    def retained_bytes(self) -> int:
        """What a CPU's process keeps of the peak once the row is gone; 0 on CUDA."""
        self._device.release_memory()
        return self._device.retained_bytes() - self._base_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Times of a generation; `tokens`, prompt included, are int64 (batch, length).

    `token_ns` are the times between each new token and the one before it. Of several
    ranks all these are the slowest one's; `rank_ns` are each one's totals.
    """

    total_ns: int
    first_token_ns: int
    tokens: Tensor
    token_ns: tuple[int, ...] = ()
    rank_ns: tuple[int, ...] = ()


def time_row(prepared: PreparedRow, generator: torch.Generator) -> Sample:
    """Run the row's generation once and time it."""
    row = prepared.row
    device = device_of(row.device)
    # The start, each token and the end.
    mark = device.marker(row.max_new_tokens + 2)
    device.synchronize()
    start_together()
    marks = [mark()]
    tokens = prepared.engine.generate(
        prepared.prompt,
        **prepared.request(generator),
        after_token=lambda: marks.append(mark()),
    )
    (_, *tokens_ns, total_ns), rank_ns = slowest(device.times_ns([*marks, mark()]))
    check_same_tokens(tokens)
    return Sample(
        total_ns=total_ns,
        first_token_ns=tokens_ns[0],
        tokens=tokens,
        token_ns=tuple(after - before for before, after in pairwise(tokens_ns)),
        rank_ns=rank_ns,
    )


def measure_row(
    prepared: PreparedRow,
    *,
    meter: RowMemoryMeter,
    damaged: bool = False,
    with_work: bool = False,
    samples_budget_s: float | None = None,
    progress: Progress = lambda _text: None,
    after_sample: Callable[[Sample], None] = lambda _sample: None,
) -> Measurement:
    """Warm up until it is steady, then take the row's samples, as the budget allows.

    The first generation is a warm-up, which compiles and whose values are checked. Each
    further one is a sample, unless the next one shows that the row was not yet steady:
    then it was a warm-up too. `meter` was created before the row was built. The peak
    that is reported is that of what follows the first warm-up, as in the reference; the
    build's is reported apart. With `damaged` one scale of the weights is wrong in the
    warm-up, to test the suite itself. `after_sample` is called with each sample, once
    it is known to be no warm-up. `with_work` also counts what a step calls, outside
    the samples. Raises UserError where the GPU was throttled, ValuesError where the
    values that the warm-up computed are wrong.
    """
    row = prepared.row
    device = device_of(row.device)
    slowdown = prepared.engine.options.slowdown
    # Steps that a slowdown repeats are no work of the row's.
    with_work = with_work and slowdown == 0
    build_peak_bytes = meter.peak_bytes()
    device.release_memory()
    torch_device = prepared.engine.model.device
    generator = torch.Generator(device=torch_device).manual_seed(0)
    start = time.perf_counter()
    progress("compiling and warming up" if row.compile else "warming up")
    observed = warm_up_row(prepared, generator, damaged=damaged, progress=progress)
    device.synchronize()
    warm_up_s = time.perf_counter() - start
    first_s, first_tokens = warm_up_s - observed.seconds, observed.generated
    # A fused row compiles nothing but a prompt's block.
    took_compiling = row.compile and compiled_anew()
    check = check_row_values(prepared, observed)
    closeness = closeness_db(prepared, observed)
    del observed
    work = Work(None, None)
    if with_work and not device.profiled_after_samples:
        # Its events are freed before the samples, so they are no part of the peak.
        work = count_work(prepared)
    device.release_memory()
    device.reset_peak()
    samples: list[Sample] = []
    warm_ups = 1
    injected = prepared.engine.injected
    if slowdown:
        calibrate_slowdown(prepared, generator)
    before = replace(injected)
    watch = GpuWatch(torch_device)
    watch.look()
    load_watch = LoadWatch(torch_device)
    while more_samples(samples, limit=row.num_samples, budget_s=samples_budget_s):
        progress(f"sample {len(samples) + 1} of {row.num_samples}")
        samples.append(time_row(prepared, generator))
        watch.look()
        if len(samples) == 2 and warm_ups < MAX_WARM_UPS and not steady(*samples):
            del samples[0]
            warm_ups += 1
        elif len(samples) == 2 or row.num_samples == 1:
            after_sample(samples[0])
        if len(samples) > 1:
            after_sample(samples[-1])
    load = load_watch.load()
    # All ranks end alike, so that none waits for another.
    if (reason := first_told(from_every_rank(watch.throttled()))) is not None:
        raise UserError(reason)
    peak_bytes = meter.peak_bytes()
    peak_allocated = work.peak_bytes or device.peak_allocated_bytes()
    if with_work and device.profiled_after_samples:
        work = count_work(prepared)
    totals = tuple(sample.total_ns for sample in samples)
    firsts = tuple(sample.first_token_ns for sample in samples)
    decodes = [sample.total_ns - sample.first_token_ns for sample in samples]
    generated = row.batch_size * row.max_new_tokens
    watched = generated * (len(samples) + warm_ups - 1)
    joules = watch.joules()
    tok_s = generated * 1e9 / median(totals)
    decoded = row.batch_size * (row.max_new_tokens - 1)
    # What the warm-up takes of the samples' time: it may have fewer tokens.
    steps_ns = median(decodes) * (first_tokens - 1) / max(row.max_new_tokens - 1, 1)
    as_long_s = (median(firsts) + steps_ns) / 1e9
    graph_breaks = compilations = None
    if row.compile:
        from torch._dynamo.utils import counters

        # Since the compiler was last reset.
        graph_breaks = sum(counters["graph_break"].values())
        compilations = counters["stats"]["unique_graphs"]
    return Measurement(
        tok_s=tok_s,
        decode_tok_s=decoded * 1e9 / median(decodes) if decoded else None,
        time_to_first_token_s=median(firsts) / 1e9,
        bandwidth_gb_s=prepared.model_size_bytes * tok_s / row.batch_size / GB,
        peak_memory_bytes=peak_bytes,
        peak_allocated_bytes=peak_allocated,
        build_peak_bytes=build_peak_bytes,
        model_size_bytes=prepared.model_size_bytes,
        weights=prepared.weights,
        weights_notes=prepared.weights_notes or None,
        build_s=prepared.build_s,
        warm_up_s=warm_up_s,
        warm_ups=warm_ups,
        compile_s=max(first_s - as_long_s, 0.0) if took_compiling else None,
        graph_breaks=graph_breaks,
        compilations=compilations,
        injected_slowdown=slowdown,
        repeated_steps=injected.repeated - before.repeated if slowdown else None,
        decode_steps=injected.run - before.run if slowdown else None,
        autoquant=prepared.autoquant,
        step=work.step,
        check=check,
        closeness_db=closeness,
        memory=memory_parts(prepared.engine),
        ranks=ranks_of(prepared, [sample.rank_ns for sample in samples]),
        joules_per_token=None if joules is None else joules / watched,
        card=tuple(watch.states) or None,
        card_problem=watch.problem,
        neighbours=watch.other_processes() or None,
        load=load,
        samples_budget_s=samples_budget_s,
        sample_ns=totals,
        first_token_ns=firsts,
        token_ns=tuple(sample.token_ns for sample in samples),
    )


def memory_parts(engine: RowEngine) -> MemoryParts:
    """What the tensors of an engine take, which are there all the time."""
    all_bytes = sum(map(tensor_bytes, engine.tensors()))
    cache_bytes = sum(map(tensor_bytes, engine.cache_tensors()))
    return MemoryParts(weights_bytes=all_bytes - cache_bytes, cache_bytes=cache_bytes)


def calibrate_slowdown(prepared: PreparedRow, generator: torch.Generator) -> None:
    """Have a slowdown repeat as many steps as take its share of a generation's time.

    A repeated step takes less than a step, which also chooses a token, and a prompt has
    none to repeat. Raises UserError for a row that decodes no step.
    """
    injected = prepared.engine.injected
    if prepared.row.max_new_tokens == 1:
        raise UserError(
            "inject-slowdown: repeats decode steps, and max_new_tokens = 1 has none"
        )
    times_ns: dict[float, list[int]] = {0.0: [], 1.0: []}
    for _ in range(_CALIBRATIONS):
        for injected.share, times in times_ns.items():
            times.append(time_row(prepared, generator).total_ns)
    once_ns, twice_ns = median(times_ns[0.0]), median(times_ns[1.0])
    # Noise can make a repeat look free; it takes no less than a third of its time.
    decode_ns = max(twice_ns - once_ns, once_ns / 3)
    injected.share = prepared.engine.options.slowdown * once_ns / decode_ns


def steady(before: Sample, after: Sample) -> bool:
    """Whether two generations in a row took as long, but for the noise of one."""
    difference_ns = abs(after.total_ns - before.total_ns)
    return difference_ns <= max(_STEADY_SHARE * before.total_ns, _STEADY_NS)


def more_samples(
    samples: Sequence[Sample], *, limit: int, budget_s: float | None
) -> bool:
    """Whether to take another sample: one as long as the others is in the budget."""
    if len(samples) >= limit:
        return False
    if budget_s is None or len(samples) < MIN_SAMPLES:
        return True
    spent_s = sum(sample.total_ns for sample in samples) / 1e9
    return spent_s + spent_s / len(samples) <= budget_s

"""Every speed and time of docs/metrics.md, by a clock that the tests drive."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest
import torch

from llama_perf.devices import cuda
from llama_perf.devices.device import device_of
from llama_perf.llama.decode_step import InjectedSteps
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.row_engine import RowEngine
from llama_perf.llama.transformer import Transformer
from llama_perf.measure.prepare import PreparedRow
from llama_perf.measure.timing import RowMemoryMeter, measure_row, time_row
from llama_perf.results.measurement import GB
from tests.correctness.support.record_samples import CPU_ROW
from tests.correctness.support.weights_samples import TINY

PROMPT_MS = 100
STEPS_MS = (10, 20, 30, 40)


class Clock:
    """Stands still but for prompts, which take PROMPT_MS, and steps, STEPS_MS."""

    def __init__(self, engine: RowEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 10**15
        self._steps: Iterator[int] = iter(())
        monkeypatch.setattr("time.perf_counter_ns", lambda: self.now_ns)
        prefill, decode = engine.prefill, engine.decode

        def timed_prefill(*arguments: Any) -> torch.Tensor:
            self._steps = cycle(STEPS_MS)
            self.now_ns += PROMPT_MS * 10**6
            return prefill(*arguments)

        def timed_decode(*arguments: Any) -> torch.Tensor:
            self.now_ns += next(self._steps) * 10**6
            return decode(*arguments)

        monkeypatch.setattr(engine, "prefill", timed_prefill)
        monkeypatch.setattr(engine, "decode", timed_decode)


def prepared_row(batch_size: int, new_tokens: int = 5) -> PreparedRow:
    row = replace(CPU_ROW, batch_size=batch_size, max_new_tokens=new_tokens)
    options = EngineOptions(cache_size=row.positions, batch_size=batch_size)
    prompt = torch.zeros((batch_size, row.prompt_length), dtype=torch.int64)
    engine = Engine(Transformer(TINY), options)
    return PreparedRow(row=row, engine=engine, prompt=prompt, weights="", build_s=0.0)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_definition_by_hand(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_row(batch_size)
    Clock(prepared.engine, monkeypatch)
    now = measure_row(prepared, meter=RowMemoryMeter(torch.device("cpu")))
    # 5 tokens a sequence: one of the prompt, in 100 ms, and 4 in 10 + 20 + 30 + 40 ms.
    assert now.sample_ns == (200_000_000,) * 5
    assert now.first_token_ns == (100_000_000,) * 5
    assert now.time_to_first_token_s == 0.1
    itl_ns = (10_000_000, 20_000_000, 30_000_000, 40_000_000)
    assert now.token_ns == (itl_ns,) * 5
    tpot_s = (0.2 - 0.1) / (5 - 1)
    assert sum(itl_ns) / len(itl_ns) == tpot_s * 1e9 == 25_000_000
    total, decode = {1: (25, 40), 3: (75, 120)}[batch_size]
    assert now.tok_s == total
    assert now.decode_tok_s == decode == batch_size / tpot_s
    # A step reads the weights once, for all sequences.
    assert now.bandwidth_gb_s == pytest.approx(now.model_size_bytes * 25 / GB)
    # 20 tokens: 10 of them beyond the median, and only 2 beyond the 90th percentile.
    assert now.token_p50_ms == 25
    assert now.token_p90_ms is now.token_p99_ms is None


def test_a_single_token_has_no_time_between_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared = prepared_row(1, new_tokens=1)
    Clock(prepared.engine, monkeypatch)
    now = measure_row(prepared, meter=RowMemoryMeter(torch.device("cpu")))
    assert now.token_ns == ((),) * 5
    assert now.tok_s == 10
    assert now.decode_tok_s is now.token_p50_ms is None


def test_a_repeated_step_counts_into_the_token_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared = prepared_row(1)
    Clock(prepared.engine, monkeypatch)
    # Of four steps the first and the third are repeated.
    prepared.engine.injected = InjectedSteps(0.5)
    sample = time_row(prepared, torch.Generator())
    steps_ms = [10 + 20, 30, 40 + 10, 20]
    assert sample.token_ns == tuple(ms * 10**6 for ms in steps_ms)
    assert sample.total_ns == (100 + sum(steps_ms)) * 10**6


class Event:
    """In place of CUDA's, which is created when it is first recorded."""

    created = 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.recorded = 0

    def record(self) -> None:
        Event.created += self.recorded == 0
        self.recorded += 1


def test_on_cuda_no_event_is_created_between_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "created", 0)
    cuda._kept_events.cache_clear()
    # A longer generation needs more than the ones before.
    for count, created in ((4, 4), (4, 4), (2, 4), (6, 6)):
        mark = device_of("cuda").marker(count)
        assert Event.created == created
        marks = [mark() for _ in range(count)]
        assert len(set(marks)) == count
        assert Event.created == created
    cuda._kept_events.cache_clear()

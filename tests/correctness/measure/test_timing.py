"""What a row measures: its memory, and as many samples as a budget leaves."""

import warnings
from dataclasses import replace
from statistics import median
from types import SimpleNamespace
from unittest.mock import Mock, patch

import pytest
import torch

from llama_perf.devices.device import device_of
from llama_perf.errors import UserError
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.transformer import Transformer
from llama_perf.measure import timing as measuring
from llama_perf.measure.prepare import PreparedRow, predict_row, prepare_row
from llama_perf.measure.step_profile import count_work, load_profiler
from llama_perf.measure.timing import RowMemoryMeter, Sample, measure_row
from llama_perf.report.text import as_markdown, as_text
from llama_perf.results.measurement import Measurement
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import RunRequest
from llama_perf.run.session import Session
from llama_perf.strict_json import from_json, to_json
from tests.correctness.support.record_samples import (
    CPU_ROW,
    MEASUREMENT,
    OTHER,
    measured,
    report_of,
)
from tests.correctness.support.weights_samples import TINY

CPU = torch.device("cpu")
SDPA = {"attention": "sdpa"}
MB = 1_000_000
# Python and the allocator take some of their own: up to 8.3 MB on arm64.
OWN = 16 * MB

ROW = RowSpec(model="stories15M", dtype="float32", device="cpu")
ROW = replace(ROW, max_new_tokens=4, num_samples=1, cache_size=64)


@pytest.mark.parametrize(
    ("share", "most", "count"),
    [
        *((0.005, 5, 5), (0.2, 5, 5), (0.225, 5, 4), (0.3, 5, 3), (0.4, 5, 2)),
        *((3.0, 5, 2), (3.0, 2, 2), (3.0, 1, 1), (0.05, 30, 20)),
    ],
)
def test_samples_stay_in_the_budget_but_are_two_where_as_many_are_asked_for(
    share: float, most: int, count: int
) -> None:
    for device, budget_s in (("cuda", 20.0), ("cpu", 1.5)):
        assert device_of(device).samples_budget_s == budget_s
        ns = round(share * budget_s * 1e9)
        sample = Sample(total_ns=ns, first_token_ns=1, tokens=torch.zeros(1))
        samples: list[Sample] = []
        while measuring.more_samples(samples, limit=most, budget_s=budget_s):
            samples.append(sample)
        assert len(samples) == count


@pytest.mark.parametrize(("budget_s", "count"), [(None, 5), (1e-9, 2), (1e6, 5)])
def test_a_measurement_has_its_budget_and_what_it_took(
    budget_s: float | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Mock(states=[], problem=None, other_processes=tuple)
    watch.throttled.return_value, watch.joules.return_value = None, 1200.0
    monkeypatch.setattr(measuring, "GpuWatch", lambda _device: watch)
    # On a busy machine they may differ, which costs a further warm-up.
    monkeypatch.setattr(measuring, "steady", lambda *_: True)
    row = replace(CPU_ROW, max_new_tokens=2)
    engine = Engine(Transformer(TINY), EngineOptions(cache_size=row.positions))
    prompt = torch.zeros((1, row.prompt_length), dtype=torch.int64)
    messages: list[str] = []
    measurement = measure_row(
        PreparedRow(row=row, engine=engine, prompt=prompt, weights="", build_s=0.0),
        meter=RowMemoryMeter(CPU),
        samples_budget_s=budget_s,
        progress=messages.append,
    )
    assert len(measurement.sample_ns) == len(measurement.first_token_ns) == count
    assert measurement.samples_budget_s == budget_s
    first_s, total_s = measurement.time_to_first_token_s, 2 / measurement.tok_s
    for seconds, ns in (
        (first_s, measurement.first_token_ns),
        (total_s, measurement.sample_ns),
    ):
        assert seconds == pytest.approx(median(ns) / 1e9)
    assert measurement.joules_per_token == 1200.0 / (count * 2)
    assert watch.look.call_count == count + 1
    numbers = [f"sample {number} of 5" for number in range(1, count + 1)]
    assert messages == ["warming up", *numbers]


@pytest.mark.parametrize(
    ("ms", "warm_ups", "taken"),
    [
        # Each generation after the first, which compiles, and what became of them.
        ((100, 102, 101), 1, (100, 102, 101)),
        ((150, 100, 102, 101), 2, (100, 102, 101)),
        ((80, 100, 102, 101), 2, (100, 102, 101)),
        ((400, 300, 200, 102, 101, 100), 4, (102, 101, 100)),
        # A row that goes on drifting is measured all the same.
        ((800, 400, 300, 200, 100, 50), 4, (200, 100, 50)),
        # A tiny row's differences are the scheduler's.
        ((1, 9, 2), 1, (1, 9, 2)),
    ],
)
def test_a_row_warms_up_until_two_neighbours_are_alike(
    ms: tuple[int, ...],
    warm_ups: int,
    taken: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = replace(CPU_ROW, max_new_tokens=2, num_samples=3)
    engine = Engine(Transformer(TINY), EngineOptions(cache_size=row.positions))
    prompt = torch.zeros((1, row.prompt_length), dtype=torch.int64)
    left = [Sample(total_ns=n * MB, first_token_ns=1, tokens=prompt) for n in ms]
    monkeypatch.setattr(measuring, "time_row", lambda *_: left.pop(0))
    shown: list[int] = []
    measurement = measure_row(
        PreparedRow(row=row, engine=engine, prompt=prompt, weights="", build_s=0.0),
        meter=RowMemoryMeter(CPU),
        after_sample=lambda sample: shown.append(sample.total_ns),
    )
    assert measurement.sample_ns == tuple(shown) == tuple(n * MB for n in taken)
    assert (measurement.warm_ups, left) == (warm_ups, [])
    first, *others = taken
    assert measurement.trend == pytest.approx(first / median(others) - 1)


def test_a_row_that_was_not_steady_is_said_to_be() -> None:
    steady, drifting = (10, 10, 10, 10, 10), (13, 10, 10, 10, 10)
    results = (
        measured(sample_ns=steady, warm_ups=1),
        measured(OTHER, sample_ns=drifting, warm_ups=4),
    )
    text = as_text(report_of(*results))
    line = f"not steady: {OTHER.id}, whose first sample took 30% more time than the "
    assert f"{line}others' median, after 4 warm-ups" in text
    assert text.count("not steady") == 1


@pytest.mark.parametrize("cached", [False, True])
def test_the_time_to_compile_is_known_where_all_was_compiled_anew(
    cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(CPU_ROW, compile=True, max_new_tokens=2, num_samples=1)
    prompt = torch.zeros((1, row.prompt_length), dtype=torch.int64)
    engine = Engine(Transformer(TINY), EngineOptions(cache_size=row.positions))
    prepared = PreparedRow(
        row=row, engine=engine, prompt=prompt, weights="", build_s=0.0
    )
    monkeypatch.setattr(measuring, "compiled_anew", lambda: not cached)
    measurement = measure_row(prepared, meter=RowMemoryMeter(CPU))
    seconds, warm_up_s = measurement.compile_s, measurement.warm_up_s
    assert (seconds is None) == cached
    assert 0 <= (seconds or 0.0) < (warm_up_s or 0.0)
    eager = replace(prepared, row=replace(row, compile=False))
    assert measure_row(eager, meter=RowMemoryMeter(CPU)).compile_s is None


def test_a_warm_up_of_fewer_tokens_is_compared_with_as_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = replace(CPU_ROW, compile=True, max_new_tokens=17, num_samples=1)
    engine = Engine(Transformer(TINY), EngineOptions(cache_size=row.positions))
    tokens = torch.zeros((1, row.prompt_length), dtype=torch.int64)
    prepared = PreparedRow(
        row=row, engine=engine, prompt=tokens, weights="", build_s=0.0
    )
    # 9 of 17 tokens in 5 s, of which 1 s is the check's.
    observed = Mock(seconds=1.0, generated=9)
    clock = SimpleNamespace(perf_counter=Mock(side_effect=[0.0, 5.0]))
    sample = Sample(total_ns=3 * 10**9, first_token_ns=10**9, tokens=tokens)
    for name, value in {
        "time": clock,
        "compiled_anew": lambda: True,
        "warm_up_row": lambda *_arguments, **_options: observed,
        "check_row_values": lambda *_: None,
        "time_row": lambda *_: sample,
    }.items():
        monkeypatch.setattr(measuring, name, value)
    measurement = measure_row(prepared, meter=RowMemoryMeter(CPU))
    # The first token takes 1 s, each other one 1 / 8 s.
    assert measurement.compile_s == pytest.approx(5 - 1 - (1 + 8 / 8))


def test_the_report_names_the_rows_that_took_fewer() -> None:
    results = (
        measured(samples_budget_s=20.0),
        measured(replace(CPU_ROW, compile=True)),
        measured(replace(CPU_ROW, num_samples=2), samples_budget_s=20.0),
    )
    report = report_of(*results)
    line = f"2 of 5 samples in {CPU_ROW.id}: more would have taken over 20 s"
    for text in (as_text(report), as_markdown(report)):
        assert line in text
        assert text.count("would have taken") == 1


def test_a_measurement_of_an_earlier_version_has_no_budget() -> None:
    stored = to_json(replace(MEASUREMENT, samples_budget_s=None))
    stored = stored.replace('"samples_budget_s": null,', "")
    assert "samples_budget_s" not in stored
    assert from_json(Measurement, stored, source="stored") == MEASUREMENT


def test_the_meter_sees_what_was_allocated_and_freed_until_a_new_peak() -> None:
    meter = RowMemoryMeter(CPU)
    assert meter.peak_bytes() < OWN
    tensor = torch.ones(64 * MB // 4)
    assert 60 * MB <= meter.peak_bytes() < 80 * MB
    del tensor
    assert meter.peak_bytes() >= 60 * MB
    assert meter.retained_bytes() < OWN
    device_of(CPU).reset_peak()
    assert meter.peak_bytes() < OWN
    assert device_of(CPU).peak_allocated_bytes() is None, "no allocator has a peak"


@pytest.mark.parametrize(
    "change",
    [{}, {"quantization": "int8wo"}, {"kv_cache_quantization": True}, SDPA],
    ids=str,
)
def test_it_is_the_same_each_time_and_close_to_what_is_predicted(
    change: dict[str, object],
) -> None:
    row = replace(ROW, **change)  # type: ignore[arg-type]
    prepared = prepare_row(row)
    load_profiler()
    # The first one keeps a few bytes for those after it, as a warm-up does.
    _, first, second = (count_work(prepared).peak_bytes for _ in range(3))
    assert first == second
    again = count_work(prepare_row(row)).peak_bytes
    assert again == pytest.approx(first, rel=1e-5)
    # What a product takes inside is not predicted.
    assert first == pytest.approx(predict_row(row).peak_bytes, rel=0.05, abs=6e6)


def test_a_larger_cache_adds_its_bytes_and_is_found_in_what_a_row_measures() -> None:
    results, rows = [], [replace(ROW, cache_size=size) for size in (64, 64, 4096)]
    for row in rows:
        meter = RowMemoryMeter(CPU)
        measurement = measure_row(prepare_row(row), meter=meter, with_work=True)
        results.append(measurement.peak_allocated_bytes or 0)
    first, second, larger = results
    assert first == second > 0
    caches = [predict_row(row).cache_bytes for row in rows]
    assert larger - first == caches[-1] - caches[0]
    assert larger > 1.02 * first


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_a_slowdown_is_a_share_of_the_whole_generation(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated step takes 0.8 of one; the prompt takes as long as four."""
    prepared = prepare_row(replace(ROW, num_samples=200), slowdown=share)
    injected = prepared.engine.injected

    def timed(_prepared: PreparedRow, _generator: torch.Generator) -> Sample:
        repeated = sum(injected.next_step() for _ in range(3))
        total_ns = round((4 + 3 + 0.8 * repeated) * 1e6)
        return Sample(
            total_ns=total_ns, first_token_ns=4_000_000, tokens=torch.zeros(1)
        )

    monkeypatch.setattr(measuring, "time_row", timed)
    measurement = measure_row(prepared, meter=RowMemoryMeter(CPU))
    mean_ns = sum(measurement.sample_ns) / len(measurement.sample_ns)
    assert mean_ns == pytest.approx(7e6 * (1 + share), rel=0.002)
    counts = (measurement.repeated_steps, measurement.decode_steps)
    if not share:
        assert counts == (None, None)
        return
    repeated, steps = counts
    assert steps == 200 * 3
    assert repeated == pytest.approx(share * 200 * 7 / 0.8, abs=1)
    told = as_text(report_of(replace(measured(), measurement=measurement)))
    assert f": {repeated} repeats in {steps} decode steps" in told


def test_a_row_that_is_built_again_is_slowed_as_it_was_when_measured() -> None:
    session = Session(["cpu"], options=RunRequest(inject_slowdown=(("*", 0.5),)))
    row = replace(ROW, num_samples=3)
    measurement = session.run_row(row).measurement
    assert measurement is not None
    assert measurement.injected_slowdown == 0.5
    with patch("llama_perf.run.session.calibrate_slowdown") as calibrate:
        assert session.prepare(row) == ()
        calibrate.assert_not_called()
        assert session.prepare(replace(row, prompt_length=7)) == ()
        calibrate.assert_called_once()


def test_a_row_without_decode_steps_cannot_be_slowed() -> None:
    prepared = prepare_row(replace(ROW, max_new_tokens=1), slowdown=0.05)
    with pytest.raises(UserError, match=r"inject-slowdown: .* max_new_tokens = 1 has"):
        measure_row(prepared, meter=RowMemoryMeter(CPU))


@pytest.mark.parametrize("reads", [0, 1, 3])
def test_a_step_counts_what_it_reads_on_the_host(
    reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_row(ROW)
    decode = prepared.engine.decode

    def reading(token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        for _ in range(reads):
            assert position.item() >= 0
        return decode(token, position)

    monkeypatch.setattr(prepared.engine, "decode", reading)
    step = count_work(prepared).step
    assert step is not None
    assert step.host_waits == reads


def test_cuda_counts_torchs_warnings_of_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    device = device_of(torch.device("cuda"))
    with device.counting_waits() as waits:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation (at x)", stacklevel=1)
        warnings.warn("another one", stacklevel=1)
    assert len(waits) == 2
    assert modes == ["warn", "default"]

"""The work of a decode step by time: operators on a CPU, kernels on a GPU.

Taken outside the samples, by PyTorch's profiler. The times are a profiler's, longer
than those that are measured: they show where a step's time goes. The calls are exact.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from packaging.version import Version
from torch.profiler import ProfilerActivity, profile

from llama_perf.devices.device import device_of
from llama_perf.measure.prepare import Prepared
from llama_perf.results.measurement import OperatorTime, StepWork

_STEPS = 4
_MAX_OPERATORS = 12


@cache
def load_profiler() -> None:
    """Have the profiler load what it needs: some 150 MB that are no row's."""
    # It announces itself on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    if _may_tear_down(torch.version.cuda):
        # Else its hooks stay in the driver and slow each later row of the process
        # (pytorch/pytorch#144455). torch's own default from kineto's pull request 1264.
        os.environ.setdefault("TEARDOWN_CUPTI", "1")
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        torch.ones(1)
    profiler.key_averages()


def _may_tear_down(cuda: str | None) -> bool:
    """Whether captured graphs outlive the profiler's end: before CUDA 12.6 they crash.

    See pytorch/pytorch#150957.
    """
    return cuda is not None and Version(cuda) >= Version("12.6")


def step_work(prepared: Prepared) -> StepWork | None:
    """The operators of a decoding step; None for a row that decodes none.

    Also where no kernel is seen, as on a card whose counters are not ours to read.
    """
    steps = min(_STEPS, prepared.row.max_new_tokens - 1)
    if steps < 1:
        return None
    load_profiler()
    device = device_of(prepared.row.device)
    generator = torch.Generator(device=prepared.prompt.device).manual_seed(0)
    tokens = prepared.engine.stream(
        prepared.prompt,
        max_new_tokens=steps + 1,
        lengths=prepared.lengths,
        sampling=prepared.sampling(generator),
    )
    # The first is the prefill's.
    next(tokens)
    with profile(activities=[device.activity], acc_events=True) as profiler:
        for _ in tokens:
            pass
        device.synchronize()
    wanted = device.activity.name
    events = profiler.key_averages()
    counted = [event for event in events if event.device_type.name == wanted]
    return _summary(counted, steps) if counted else None


def _summary(events: Sequence[Any], steps: int) -> StepWork:
    times = [
        OperatorTime(
            name=event.key, calls=event.count / steps, ms=_self_us(event) / 1e3 / steps
        )
        for event in events
    ]
    times.sort(key=lambda operator: -operator.ms)
    return StepWork(
        # Whole numbers first: a sum of shares depends on their order.
        calls=sum(event.count for event in events) / steps,
        ms=sum(operator.ms for operator in times),
        operators=tuple(times[:_MAX_OPERATORS]),
    )


def _self_us(event: Any) -> float:
    on_host = event.device_type.name == "CPU"
    us = event.self_cpu_time_total if on_host else event.self_device_time_total
    return float(us)

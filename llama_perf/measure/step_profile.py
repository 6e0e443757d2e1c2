"""The work of a decode step by time: operators on a CPU, kernels on a GPU.

Taken outside the samples, by PyTorch's profiler. The times are a profiler's, longer
than those that are measured: they show where a step's time goes. The calls are exact,
and so are the bytes of a CPU's tensors: it also sees what an operator allocates and
frees again.
"""

import os
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from packaging.version import Version
from torch.autograd import profiler as autograd_profiler
from torch.profiler import ProfilerActivity, profile

from llama_perf.devices.device import device_of
from llama_perf.llama.transformer import tensor_bytes
from llama_perf.measure.prepare import PreparedRow
from llama_perf.results.measurement import OperatorTime, StepWork

_STEPS = 2
_MAX_OPERATORS = 12
_READS_A_VALUE = "aten::_local_scalar_dense"


@cache
def load_profiler() -> None:
    """Have the profiler load what it needs: some 150 MB that are no row's."""
    # It announces itself on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    if torch.version.cuda and Version(torch.version.cuda) >= Version("12.6"):
        # Else its hooks stay in the driver and slow each later row of the process
        # (pytorch/pytorch#144455). torch's own default from kineto's pull request 1264.
        # Before CUDA 12.6 captured graphs crash at the profiler's end
        # (pytorch/pytorch#150957).
        os.environ.setdefault("TEARDOWN_CUPTI", "1")
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        torch.ones(1)
    profiler.key_averages()


class Work(NamedTuple):
    """What a profiler counts of a generation; `peak_bytes` only on a CPU.

    They are the weights, the caches and the most besides of a prompt and a step.
    `step` is None without a step, or where no kernel is seen.
    """

    step: StepWork | None
    peak_bytes: int | None


def count_work(prepared: PreparedRow) -> Work:
    """The work of another generation, of as few tokens as that takes."""
    load_profiler()
    device = device_of(prepared.row.device)
    on_host = device.kind == "cpu"
    most = prepared.row.max_new_tokens
    steps = min(_STEPS, most - 1)
    # Later steps allocate the same again.
    counted = min(2, most - steps) if on_host else 1
    generator = torch.Generator(device=prepared.prompt.device).manual_seed(0)
    request = prepared.request(generator, counted + steps)
    # Without torch.profiler around it, which makes an object of each event.
    recorder = autograd_profiler.profile(enabled=on_host, profile_memory=True)
    profiler = profile(activities=[device.activity], acc_events=True)
    waits: list[str] = []
    with ExitStack() as watched:
        watched.enter_context(recorder)
        n_tokens = 0

        def after_token() -> None:
            """Profile the last steps; those before are only counted."""
            nonlocal n_tokens, waits
            n_tokens += 1
            if n_tokens in (counted, counted + steps):
                watched.close()
                if n_tokens < counted + steps:
                    watched.enter_context(profiler)
                    watched.callback(device.synchronize)
                    waits = watched.enter_context(device.counting_waits())

        engine = prepared.engine
        engine.watched(prepared.prompt, after_token=after_token, **request)
    peak_bytes = None
    if on_host:
        working_bytes = _working_bytes(recorder)
        peak_bytes = sum(map(tensor_bytes, engine.tensors())) + working_bytes
    if steps < 1:
        return Work(None, peak_bytes)
    step = _step_work(profiler, device.activity.name, steps)
    if step is not None and not on_host:
        step = replace(step, host_waits=len(waits) / steps)
    return Work(step, peak_bytes)


def _step_work(profiler: profile, name: str, steps: int) -> StepWork | None:
    """What a step calls on the device of the activity `name`."""
    events: list[Any] = [
        event for event in profiler.key_averages() if event.device_type.name == name
    ]
    if not events:
        return None
    on_host = name == ProfilerActivity.CPU.name
    total_us = "self_cpu_time_total" if on_host else "self_device_time_total"
    times = [
        OperatorTime(
            name=event.key,
            calls=event.count / steps,
            ms=float(getattr(event, total_us)) / 1e3 / steps,
        )
        for event in events
    ]
    times.sort(key=lambda operator: -operator.ms)
    # On a CPU `.item()`, `.tolist()` and `bool()` of a tensor end in this operator.
    reads = sum(event.count for event in events if event.key == _READS_A_VALUE)
    return StepWork(
        # Whole numbers first: a sum of shares depends on their order.
        calls=sum(event.count for event in events) / steps,
        ms=sum(operator.ms for operator in times),
        operators=tuple(times[:_MAX_OPERATORS]),
        host_waits=reads / steps,
    )


def _working_bytes(recorded: Any) -> int:
    """The most bytes that were there besides those from before."""
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in recorded.kineto_results.events()
        if event.name() == "[memory]"
    )
    most: int = max(accumulate((size for _, size in changes), initial=0))
    return most

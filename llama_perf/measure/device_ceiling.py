"""What bounds a decoding step on this device today: its bandwidth, and its launches.

Bandwidth is that of a read-only stream, the sum of a buffer several times larger than
any cache. On CUDA that of a device-to-device copy is measured too: its bytes are read
and written.
On CUDA a step is one captured graph: it takes at least the bytes it reads over the
bandwidth plus the gaps between its kernels, which are measured as a chain of kernels
that do nothing, with and without programmatic dependent launch.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from llama_perf.devices.base import Device
from llama_perf.devices.cuda import capture_graph, warm_up
from llama_perf.devices.device import device_of
from llama_perf.measure.environment import triton_problem
from llama_perf.results.measurement import Ceiling

_ROUNDS = 10
# Kernels of the two chains whose difference gives the time of one.
_SHORT, _LONG = 64, 512


def measure_ceiling(device: torch.device) -> Ceiling:
    """Read, copy and, where Triton can compile, launch: the best of several rounds."""
    used = device_of(device)
    ceiling = Ceiling(read_gb_s=stream_gb_s(used))
    if not used.has_graphs:
        return ceiling
    ceiling = replace(ceiling, copy_gb_s=stream_gb_s(used, copied=True))
    used.release_memory()
    if triton_problem() is not None:
        return ceiling
    launch, dependent = launch_us(device)
    return replace(ceiling, launch_us=launch, dependent_launch_us=dependent)


def stream_gb_s(device: Device, *, copied: bool = False) -> float:
    """GB/s (10^9 bytes) of reading or copying, the best of several rounds."""
    size = device.stream_bytes()
    source = torch.ones(size // 4, dtype=torch.float32, device=device.torch_device)
    if not copied:
        return size / best_seconds(device, source.sum)[0] / 1e9
    target = torch.empty_like(source)
    return 2 * size / best_seconds(device, lambda: target.copy_(source))[0] / 1e9


def best_seconds(device: Device, work: Callable[[], object]) -> tuple[float, int]:
    """The best of several rounds, and how often `work` was called."""
    work()
    rounds_ns = []
    for _ in range(_ROUNDS):
        device.synchronize()
        start = device.mark()
        work()
        rounds_ns.append(device.times_ns([start, device.mark()])[1])
    return min(rounds_ns) / 1e9, _ROUNDS + 1


def launch_us(device: torch.device) -> tuple[float, float | None]:
    """From one kernel of a captured graph to the next: without and with dependence.

    The second is None on a GPU that has no programmatic dependent launch.
    """
    from llama_perf.kernels.triton.launch import EARLY_SINCE

    independent = _gap_us(device, dependent=False)
    if torch.cuda.get_device_capability(device) < EARLY_SINCE:
        return independent, None
    return independent, _gap_us(device, dependent=True)


def _gap_us(device: torch.device, *, dependent: bool) -> float:
    from llama_perf.kernels.triton.launch import launch_count

    count = torch.zeros(1, dtype=torch.int32, device=device)

    def chain_seconds(length: int) -> float:
        def work() -> None:
            for _ in range(length):
                launch_count(count, dependent=dependent)

        warm_up(work)
        graph = capture_graph(work)
        before = int(count)
        seconds, replays = best_seconds(device_of(device), graph.replay)
        counted = int(count) - before
        assert counted == replays * length, "a kernel of the chain did not run"
        return seconds

    return (chain_seconds(_LONG) - chain_seconds(_SHORT)) / (_LONG - _SHORT) * 1e6

"""What bounds a decoding step on this device today: its bandwidth, and its launches.

On CUDA a step is one captured graph: its floor is the bytes it reads over the bandwidth
plus what lies between its kernels, which is measured as a chain of kernels that do
nothing, with and without programmatic dependent launch.
"""

from __future__ import annotations

import torch

from llama_perf.llama.decode_step import capture_graph, warm_up
from llama_perf.measure.bandwidth import best_cuda_seconds, copy_gb_s, read_gb_s
from llama_perf.measure.toolchain import triton_problem
from llama_perf.results.measurement import Ceiling

_FEW, _MANY = 64, 512


def measure_ceiling(device: torch.device) -> Ceiling:
    """Read, copy and launch, the best of several rounds each.

    Without launches where Triton can compile none.
    """
    if device.type == "cpu":
        return Ceiling(read_gb_s=read_gb_s(device))
    found = Ceiling(read_gb_s=read_gb_s(device), copy_gb_s=copy_gb_s(device))
    torch.cuda.empty_cache()
    if triton_problem() is not None:
        # The rows of torch and torchao alone run all the same.
        return found
    launch, dependent = launch_us(device)
    return Ceiling(
        read_gb_s=found.read_gb_s,
        copy_gb_s=found.copy_gb_s,
        launch_us=launch,
        dependent_launch_us=dependent,
    )


def launch_us(device: torch.device) -> tuple[float, float | None]:
    """From one kernel of a captured graph to the next, plainly and dependent."""
    from llama_perf.kernels.triton.dependent_launch import EARLY_SINCE

    plain = _gap_us(device, dependent=False)
    if torch.cuda.get_device_capability(device) < EARLY_SINCE:
        return plain, None
    return plain, _gap_us(device, dependent=True)


def _gap_us(device: torch.device, *, dependent: bool) -> float:
    from llama_perf.kernels.triton.dependent_launch import launch_count

    x = torch.zeros(1, dtype=torch.int32, device=device)

    def chain(length: int) -> float:
        def work() -> None:
            for _ in range(length):
                launch_count(x, dependent=dependent)

        warm_up(work)
        graph = capture_graph(work)
        before = int(x)
        seconds, replays = best_cuda_seconds(graph.replay)
        assert int(x) - before == replays * length, "a kernel of the chain did not run"
        return seconds

    return (chain(_MANY) - chain(_FEW)) / (_MANY - _FEW) * 1e6

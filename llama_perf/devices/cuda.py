"""An NVIDIA GPU as a device: torch's view of it, and its driver's; CUDA graphs."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from llama_perf.devices import driver
from llama_perf.devices.base import Device, slug

_STREAM_BYTES = 4 * 2**30
MIN_STREAM_BYTES = 16 * 2**20

_WAITS = "called a synchronizing CUDA operation"


class CudaDevice(Device):
    """A GPU that torch reaches through CUDA."""

    kind = "cuda"
    needs_triton = True
    has_graphs = True
    # A profiler may leave its hooks in the driver.
    profiled_after_samples = True
    samples_budget_s = 20.0
    activity = ProfilerActivity.CUDA
    # What cuBLAS keeps to work in on sm_90 and up; 8 MiB before.
    library_bytes = 32 * 2**20

    @property
    def _properties(self) -> Any:
        return torch.cuda.get_device_properties(self.torch_device)

    def why_absent(self) -> str | None:
        with warnings.catch_warnings():
            # It warns of a driver that is too old; each row's reason says what to do.
            warnings.simplefilter("ignore")
            if torch.cuda.is_available():
                return None
        listed = driver.ask_driver()
        if driver.hidden():
            reason = f" can be used: CUDA_VISIBLE_DEVICES={driver.visible()!r} hides it"
        elif (unseen := self.why_unusable()) is not None:
            reason = f" can be used: {unseen}"
        elif listed is not None and listed.problem is not None:
            reason = f": {listed.problem}"
        elif torch.version.cuda:
            reason = ""
        else:
            reason = f"; torch {torch.__version__} is a CPU build"
        return f"no CUDA device on this machine{reason}"

    def why_unusable(self) -> str | None:
        """See `Device.why_unusable`; a GPU that the user hid is none."""
        listed = driver.ask_driver()
        if driver.hidden() or listed is None or not listed.gpus:
            return None
        version, built_for = torch.__version__, torch.version.cuda
        return driver.why_unseen(listed, torch=version, built_for=built_for)

    @property
    def name(self) -> str:
        return str(self._properties.name)

    @property
    def key(self) -> str:
        # One name can stand for different parts: a MIG slice, or the same name with
        # fewer multiprocessors or less memory.
        parts = self._properties
        memory = round(parts.total_memory / 2**30)
        return f"{slug(parts.name)}-{parts.multi_processor_count}sm-{memory}gib"

    @property
    def uuid(self) -> str | None:
        """See `Device.uuid`: GPUs of one model differ by as much as a regression."""
        uuid = getattr(self._properties, "uuid", None)
        return None if uuid is None else str(uuid)

    @property
    def driver(self) -> str | None:
        # NVML may not be installed, or find no driver.
        with suppress(ImportError):
            import pynvml

            with suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                return str(pynvml.nvmlSystemGetDriverVersion())
        answer = driver.ask_driver()
        return None if answer is None else answer.version

    @property
    def generator(self) -> torch.Generator:
        return torch.cuda.default_generators[torch.cuda.current_device()]

    @property
    def lock_name(self) -> str:
        return f"cuda-{self.uuid}"

    def notes(self) -> list[str]:
        count, chosen = torch.cuda.device_count(), driver.visible()
        if count < 2 and chosen is None:
            return []
        setting = "it is not set" if chosen is None else repr(chosen)
        return [
            f"rows run on {self.name}, {self.uuid}, the first of {count} by"
            f" CUDA_VISIBLE_DEVICES ({setting})"
        ]

    def total_memory_bytes(self) -> int:
        return int(self._properties.total_memory)

    def free_memory_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self.torch_device)[0])

    def cache_bytes(self) -> int:
        return int(self._properties.L2_cache_size)

    def stream_bytes(self) -> int:
        free = self.free_memory_bytes()
        return max(min(_STREAM_BYTES, free // 4), MIN_STREAM_BYTES) // 4 * 4

    def release_memory(self) -> None:
        super().release_memory()
        torch.cuda.empty_cache()

    @contextmanager
    def counting_waits(self) -> Iterator[list[str]]:
        """See `Device.counting_waits`: torch warns of each."""
        waits: list[str] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield waits
            finally:
                torch.cuda.set_sync_debug_mode("default")
                texts = (str(one.message) for one in caught)
                waits += [text for text in texts if _WAITS in text]

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def marker(self, count: int) -> Callable[[], torch.cuda.Event]:
        """See `Device.marker`: of events that later generations record again."""
        kept = _kept_events(self.torch_device)
        # An event is created when it is first recorded.
        kept += (self.mark() for _ in range(count - len(kept)))
        events = iter(kept)

        def mark() -> torch.cuda.Event:
            event = next(events)
            event.record()
            return event

        return mark

    def times_ns(self, marks: list[torch.cuda.Event]) -> list[int]:
        torch.cuda.synchronize()
        return [round(marks[0].elapsed_time(mark) * 1e6) for mark in marks]

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.torch_device)

    def peak_bytes(self) -> int:
        """See `Device.peak_bytes`: `max_memory_reserved()`, as in the reference."""
        return int(torch.cuda.max_memory_reserved(self.torch_device))

    def peak_allocated_bytes(self) -> int:
        return int(torch.cuda.max_memory_allocated(self.torch_device))


@cache
def _kept_events(_device: torch.device) -> list[torch.cuda.Event]:
    """As many as the longest generation of this process needed."""
    return []


def warm_up(work: Callable[[], object]) -> None:
    """Run `work` on the stream that it will be captured on."""
    stream = _capture_stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)


def capture_graph(
    work: Callable[[], object], generator: torch.Generator | None = None
) -> torch.cuda.CUDAGraph:
    """Capture `work`, which is not run; a replay draws from `generator`."""
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    stream = _capture_stream(torch.cuda.current_device())
    # NCCL's own thread asks for its events meanwhile, which "global" does not allow.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        work()
    return graph


@cache
def _capture_stream(_device: int) -> torch.cuda.Stream:
    """One stream a device: cuBLAS keeps 32 MB for each stream that it has run on."""
    return torch.cuda.Stream()

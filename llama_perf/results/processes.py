"""Several processes that measured one row: the middle one, and how far they differ."""

import math
from collections.abc import Sequence
from statistics import variance
from typing import Protocol, TypeVar

from llama_perf.errors import check_not_negative, check_positive
from llama_perf.results.measurement import Measurement
from llama_perf.strict_json import record

# Variances of log speeds: no timing repeats to a millionth.
_MIN_VARIANCE = 1e-12


@record
class ProcessSamples:
    """The figures of a row in one process of several."""

    tok_s: float
    peak_memory_bytes: int
    sample_ns: tuple[int, ...]
    device_bandwidth_gb_s: float | None = None

    def __post_init__(self) -> None:
        check_positive("tok_s", self.tok_s)
        check_not_negative("peak_memory_bytes", self.peak_memory_bytes)
        if self.device_bandwidth_gb_s is not None:
            check_positive("device_bandwidth_gb_s", self.device_bandwidth_gb_s)


def samples_of(measurement: Measurement) -> ProcessSamples:
    """The main figures of the process that took a measurement."""
    names = ProcessSamples.__dataclass_fields__
    return ProcessSamples(**{name: getattr(measurement, name) for name in names})


class Sampled(Protocol):
    """The speed of one process, and its samples, if there are any."""

    @property
    def tok_s(self) -> float:
        """New tokens a second."""

    @property
    def sample_ns(self) -> tuple[int, ...]:
        """The time of each sample."""

    @property
    def device_bandwidth_gb_s(self) -> float | None:
        """The bandwidth of the device in that process."""


T = TypeVar("T", bound=Sampled)


def median_speed(processes: Sequence[T]) -> T:
    """The process of median speed: of an even number, the slower of the middle two."""
    by_speed = sorted(processes, key=lambda process: process.tok_s)
    return by_speed[(len(by_speed) - 1) // 2]


def deviation(processes: Sequence[Sampled]) -> float | None:
    """The deviation of their logarithmic speeds; None for a single process."""
    if len(processes) < 2:
        return None
    return log_deviation([math.log(process.tok_s) for process in processes])


def log_deviation(log_rates: Sequence[float]) -> float:
    """The sample deviation of one log speed for each process, at least two."""
    assert len(log_rates) > 1, "one process has no deviation"
    return math.sqrt(max(variance(log_rates), _MIN_VARIANCE))

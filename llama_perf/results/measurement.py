"""What one row measured, and what its figures are to be judged by.

Strict records: what bounded the device, the state of the GPU, what a step ran, what
autoquant chose, how close the values were. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from llama_perf.errors import SpecError
from llama_perf.strict_json import record

NS = 1e9
GB = 1e9


@record
class LinearChoice:
    """What autoquant chose for the linears of one shape.

    `products` are (tokens, how many) of one generation; `total_ms` is what all of them
    take with each candidate that fits; `reused` says that the times were taken in an
    earlier run.
    """

    out_features: int
    in_features: int
    products: tuple[tuple[int, int], ...]
    chosen: str
    total_ms: dict[str, float]
    reused: bool


@record
class CardState:
    """A card at one moment; `limited_by` is also what limited it since the last one.

    None: the card does not tell.
    """

    clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    limited_by: tuple[str, ...] = ()


@record
class Ceiling:
    """What a device did in a run before its rows; None: not there, or not measured.

    `launch_us` from one kernel of a captured graph to the next, `dependent_launch_us`
    the same by programmatic dependent launch.
    """

    read_gb_s: float
    copy_gb_s: float | None = None
    launch_us: float | None = None
    dependent_launch_us: float | None = None

    def __post_init__(self) -> None:
        if self.read_gb_s <= 0:
            raise SpecError("read_gb_s", self.read_gb_s, "allowed: more than 0")

    @property
    def bandwidth_gb_s(self) -> float:
        """The better of reading and copying."""
        return max(self.read_gb_s, self.copy_gb_s or 0.0)

    @property
    def summary(self) -> str:
        """All of it in one line."""
        words = [f"{self.read_gb_s:.1f} GB/s read"]
        if self.copy_gb_s is not None:
            words.append(f"{self.copy_gb_s:.1f} GB/s copied")
        if self.launch_us is not None:
            words.append(f"{self.launch_us:.2f} us from kernel to kernel")
        if self.dependent_launch_us is not None:
            words.append(f"{self.dependent_launch_us:.2f} us by dependent launch")
        return ", ".join(words)


@record
class OperatorTime:
    """An operator's calls in a step of decoding, and its own ms in a profiler."""

    name: str
    calls: float
    ms: float


@record
class StepWork:
    """All calls of a step of decoding, and the operators that take longest."""

    calls: float
    ms: float
    operators: tuple[OperatorTime, ...]


@record
class ValueCheck:
    """How close a row's logits were to the same weights run another way.

    `signal_to_noise_db`, in dB, must be `least_db` or more. Of `tokens` positions
    `ties` had another greedy token, as close as the error. `against` says what they
    were compared with.
    """

    signal_to_noise_db: float
    least_db: float
    against: str
    tokens: int
    ties: int
    seconds: float


@record
class Measurement:
    """What one row measured. Speeds are medians over its samples.

    `tok_s` counts all new tokens of the batch over the whole generation, prefill
    included, as the reference does; `decode_tok_s` leaves the prefill and the first
    token out. `bandwidth_gb_s` is model size x tok/s of one sequence, also as in the
    reference. Peaks: on CUDA the allocator's reserved and allocated bytes, on CPU the
    process's resident set over what it is when the row is gone, and the bytes that its
    tensors ask for (`allocated.py`). GB are 10^9 bytes, raw samples in ns: fewer than
    the row's `num_samples` where those would have taken more than `samples_budget_s`,
    None: no budget. `card` are its states before the first sample and after each,
    `neighbours` other processes that computed on it.
    """

    tok_s: float
    bandwidth_gb_s: float
    peak_memory_bytes: int
    model_size_bytes: int
    weights: str
    decode_tok_s: float | None = None
    time_to_first_token_s: float | None = None
    device_bandwidth_gb_s: float | None = None
    ceiling: Ceiling | None = None
    peak_allocated_bytes: int | None = None
    build_peak_bytes: int | None = None
    build_s: float | None = None
    warm_up_s: float | None = None
    graph_breaks: int | None = None
    compilations: int | None = None
    injected_slowdown: float = 0.0
    autoquant: tuple[LinearChoice, ...] | None = None
    step: StepWork | None = None
    check: ValueCheck | None = None
    joules_per_token: float | None = None
    card: tuple[CardState, ...] | None = None
    card_problem: str | None = None
    neighbours: tuple[str, ...] | None = None
    samples_budget_s: float | None = None
    sample_ns: tuple[int, ...] = ()
    first_token_ns: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.tok_s <= 0:
            raise SpecError("tok_s", self.tok_s, "allowed: more than 0")
        for name in ("peak_memory_bytes", "model_size_bytes"):
            if getattr(self, name) < 0:
                raise SpecError(name, getattr(self, name), "allowed: 0 or more")

    @property
    def device_bandwidth_share(self) -> float | None:
        """Model bandwidth over the bandwidth measured in the same run."""
        if self.device_bandwidth_gb_s is None:
            return None
        return self.bandwidth_gb_s / self.device_bandwidth_gb_s


def median_rate(counts: int, durations_ns: Sequence[int]) -> float:
    """The median of `counts` per second over the durations."""
    return counts * NS / median(durations_ns)


def median_seconds(durations_ns: Sequence[int]) -> float:
    """The median of the durations in seconds."""
    return median(durations_ns) / NS

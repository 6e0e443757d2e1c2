"""What a measurement holds beside its figures, to judge them by: strict records.

What bounded the device, what state the card was in, what a step ran, what autoquant
chose, and how close the values were. Imports no torch and does no arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from llama_perf.errors import SpecError
from llama_perf.strict_json import STRICT


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearChoice:
    """What autoquant chose for the linears of one shape.

    `products` are (tokens, how many) of one generation; `total_ms` is what all of them
    take with each candidate that fits; `reused` says that the times were taken in an
    earlier run.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    out_features: int
    in_features: int
    products: tuple[tuple[int, int], ...]
    chosen: str
    total_ms: dict[str, float]
    reused: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class CardState:
    """A card at one moment; `limited_by` is also what limited it since the last one.

    None: the card does not tell.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    limited_by: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceiling:
    """What a device did in a run before its rows; None: not there, or not measured.

    `launch_us` from one kernel of a captured graph to the next, `dependent_launch_us`
    the same by programmatic dependent launch.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

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
    def told(self) -> str:
        """All of it, in words."""
        words = [f"{self.read_gb_s:.1f} GB/s read"]
        if self.copy_gb_s is not None:
            words.append(f"{self.copy_gb_s:.1f} GB/s copied")
        if self.launch_us is not None:
            words.append(f"{self.launch_us:.2f} us from kernel to kernel")
        if self.dependent_launch_us is not None:
            words.append(f"{self.dependent_launch_us:.2f} us by dependent launch")
        return ", ".join(words)


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorTime:
    """An operator's calls in a step of decoding, and its own ms in a profiler."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    calls: float
    ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StepWork:
    """All calls of a step of decoding, and the operators that take longest."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    calls: float
    ms: float
    operators: tuple[OperatorTime, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueCheck:
    """How close a row's logits were to the same weights run another way.

    `signal_to_noise_db`, in dB, must be `least_db` or more. Of `tokens` positions
    `ties` had another greedy token, as close as the error. `against` says what they
    were compared with.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    signal_to_noise_db: float
    least_db: float
    against: str
    tokens: int
    ties: int
    seconds: float

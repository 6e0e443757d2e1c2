"""What the ranks of a row measured, each on its own device. Imports no torch."""

from collections.abc import Iterable

from llama_perf.errors import check_positive
from llama_perf.strict_json import record


@record
class RankFigures:
    """The figures of one of the ranks of a row.

    The peaks and `model_size_bytes` are those of a Measurement, of this rank alone.
    `sample_ns` has the time that each sample took on this rank. `device` names its
    device. `device_bandwidth_gb_s` was measured while the other ranks measured theirs.
    """

    device: str
    peak_memory_bytes: int
    model_size_bytes: int
    peak_allocated_bytes: int | None = None
    device_bandwidth_gb_s: float | None = None
    sample_ns: tuple[int, ...] = ()


def summed(values: Iterable[float | None]) -> float | None:
    """The sum over the ranks; None where one of them has no figure."""
    known = list(values)
    return None if None in known else sum(value or 0 for value in known)


@record
class Ranks:
    """How several ranks shared a row's model.

    `backend` is torch.distributed's, `all_reduce` how the sums of a step are made:
    "nccl", "gloo", or a name of symmetric memory's. A step, which decodes one token of
    each sequence, has `all_reduces` of them over `all_reduce_bytes` in all, which each
    rank hands in; they take `all_reduce_us`, on the slowest rank.
    """

    backend: str
    all_reduce: str
    all_reduces: int
    all_reduce_bytes: int
    all_reduce_us: float | None
    each: tuple[RankFigures, ...]

    def __post_init__(self) -> None:
        check_positive("each", len(self.each))

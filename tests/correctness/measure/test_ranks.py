"""Figures of a row from those of its ranks, and the memory that ranks need together."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from llama_perf.devices.cpu import CpuDevice
from llama_perf.devices.ranks import own_rank
from llama_perf.errors import TooLarge
from llama_perf.measure.gpu_state import GpuWatch
from llama_perf.measure.prepare import check_runnable
from llama_perf.measure.ranks import card_states, over_ranks
from llama_perf.results.measurement import CardState, Measurement
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import RunRequest
from llama_perf.run.session import Session
from tests.correctness.support.errors import refusal
from tests.correctness.support.rank_pool import RankPool
from tests.correctness.support.record_samples import MEASUREMENT, RANKS


def of_both(joules: tuple[float | None, float | None]) -> Measurement:
    """The second rank has the larger peak, and something else used its GPU."""
    second = own_rank().index
    return over_ranks(
        replace(
            MEASUREMENT,
            ranks=RANKS,
            peak_memory_bytes=100 + second,
            model_size_bytes=40 + second,
            bandwidth_gb_s=4.0 + 0.1 * second,
            device_bandwidth_gb_s=20.0 + second,
            joules_per_token=joules[second],
            neighbours=("process 7 (other)",) if second else None,
            card_problem="NVML: Unknown Error" if second else None,
        )
    )


@pytest.mark.parametrize(
    ("joules", "together"), [((1.5, 2.0), 3.5), ((1.5, None), None)]
)
def test_sums_and_the_largest(
    rank_pool: Callable[[int], RankPool],
    joules: tuple[float | None, float | None],
    together: float | None,
) -> None:
    for whole in rank_pool(2).run(of_both, joules):
        assert whole.peak_memory_bytes == 101
        assert whole.model_size_bytes == 81
        assert whole.device_bandwidth_gb_s == 41.0
        assert whole.joules_per_token == together
        assert whole.neighbours == ("process 7 (other)",)
        assert whole.card_problem == "rank 1: NVML: Unknown Error"
        assert whole.ranks is not None
        peaks = [one.peak_memory_bytes for one in whole.ranks.each]
        assert peaks == [100, 101]


HOT = CardState(
    clock_mhz=990,
    memory_clock_mhz=2619,
    temperature_c=85,
    power_w=600.0,
    limited_by=("power cap",),
)
COOL = CardState(clock_mhz=1980, memory_clock_mhz=2619, temperature_c=50, power_w=300.0)


def test_the_states_of_all_gpus_count() -> None:
    both = replace(HOT, power_w=900.0, limited_by=("power cap (rank 1)",))
    assert card_states([(COOL, COOL), (COOL, HOT)]) == (
        replace(COOL, power_w=600.0),
        both,
    )
    # The power of all is not known then.
    alone = replace(HOT, power_w=None, limited_by=("power cap (rank 1)",))
    assert card_states([None, (HOT,)]) == (alone,)
    silent = CardState(clock_mhz=1700)
    assert card_states([(silent,), (COOL,)]) == (
        replace(COOL, clock_mhz=1700, power_w=None),
    )
    assert card_states([None, None]) is None


def throttled(of_ranks: Sequence[str | None]) -> str | None:
    """How a row ends of whose ranks some say that their GPU was throttled."""
    row = RowSpec(
        model="stories15M",
        device="cpu",
        dtype="float32",
        max_new_tokens=2,
        num_samples=1,
        tensor_parallel=2,
    )
    own = of_ranks[own_rank().index]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GpuWatch, "throttled", lambda _: own)
        return Session(["cpu"], options=RunRequest()).run_row(row).reason


@pytest.mark.parametrize(
    ("of_ranks", "reason"),
    [
        (("too hot", "too hot"), "too hot"),
        ((None, "too hot"), "rank 1: too hot"),
        (("too hot", None), "rank 0: too hot"),
        ((None, None), None),
    ],
)
def test_a_rank_that_was_throttled_ends_the_row_on_all(
    rank_pool: Callable[[int], RankPool],
    of_ranks: Sequence[str | None],
    reason: str | None,
) -> None:
    assert rank_pool(2).run(throttled, of_ranks) == [reason, reason]


def test_ranks_of_a_cpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuDevice, "free_memory_bytes", lambda _: 27_500_000_000)
    row = RowSpec(model="7B", dtype="float32", device="cpu")
    check_runnable(row)
    # Each has the whole embedding.
    refused = refusal(check_runnable, replace(row, tensor_parallel=2), error=TooLarge)
    assert refused.startswith("needs 27.7 GB, 2 ranks together (KV cache 0.1 GB at")


def refused_with(free_bytes: Sequence[int]) -> str:
    """What a rank says of a row that needs 27.7 GB, with so much free when it asks."""
    row = RowSpec(model="7B", dtype="float32", device="cpu", tensor_parallel=2)
    with pytest.MonkeyPatch.context() as patch:
        own = free_bytes[own_rank().index]
        patch.setattr(CpuDevice, "free_memory_bytes", lambda _: own)
        return refusal(check_runnable, row, error=TooLarge)


def test_ranks_decide_alike_whether_a_row_fits(
    rank_pool: Callable[[int], RankPool],
) -> None:
    """By the least that one of them found free."""
    free_bytes = 28_000_000_000, 14_000_000_000
    first, second = rank_pool(2).run(refused_with, free_bytes)
    assert first == second
    assert first.endswith("; 14.0 GB free")

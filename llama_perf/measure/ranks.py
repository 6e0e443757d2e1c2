"""What the ranks of a row exchange while it is measured.

Each decision that depends on a clock is taken from the slowest rank's times, so that
all ranks decide alike. A row of one rank exchanges nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain

import torch
import torch.distributed as dist

from llama_perf.devices.all_reduce import all_reduce_name, slowest_s, sum_over_ranks
from llama_perf.devices.device import device_of
from llama_perf.devices.ranks import from_every_rank, own_rank
from llama_perf.errors import ValuesError
from llama_perf.measure.prepare import PreparedRow
from llama_perf.results.measurement import CardState, Measurement
from llama_perf.results.ranks import RankFigures, Ranks, summed


def start_together() -> None:
    """Wait until every rank is here."""
    if own_rank().count > 1:
        dist.barrier()


def slowest(times_ns: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the times of a sample those of the rank that took longest, and each total.

    The last of a rank's times is that of the whole sample.
    """
    of_ranks = from_every_rank(tuple(times_ns))
    longest = max(of_ranks, key=lambda times: times[-1])
    return longest, tuple(times[-1] for times in of_ranks)


def check_same_tokens(tokens: torch.Tensor) -> None:
    """Raise ValuesError unless every rank has the same tokens (B, T).

    It names the first place that differs, and the ranks whose token most do not have.
    """
    if own_rank().count == 1:
        return
    of_ranks = torch.tensor(from_every_rank(tokens.tolist()))
    differs = (of_ranks != of_ranks[0]).any(0)
    if not differs.any():
        return
    # The first position of any sequence: what follows is another text.
    position = int(differs.any(0).nonzero()[0])
    sequence = int(differs[:, position].nonzero()[0])
    chosen = of_ranks[:, sequence, position].tolist()
    usual, count = Counter(chosen).most_common(1)[0]
    # Of two ranks neither is the odd one.
    has_most = 2 * count > len(chosen)
    odd = [
        f"rank {rank} {token}"
        for rank, token in enumerate(chosen)
        if not has_most or token != usual
    ]
    others = [f"the others {usual}"] if has_most else []
    raise ValuesError(
        "check: the ranks chose other tokens from the same draws: at position"
        f" {position} of sequence {sequence}, {', '.join(odd + others)}"
    )


def ranks_of(prepared: PreparedRow, sample_ns: Sequence[Sequence[int]]) -> Ranks | None:
    """The ranks of a row with their times, one for each sample; None of one rank.

    What else each of them measured comes by `over_ranks`.
    """
    row, config = prepared.row, prepared.engine.model.config
    if row.ranks == 1:
        return None
    itemsize: int = getattr(torch, row.dtype).itemsize
    count = 2 * config.n_layers
    device = prepared.prompt.device
    names = from_every_rank(device_of(device).name)
    each = (
        RankFigures(
            device=name,
            peak_memory_bytes=0,
            model_size_bytes=prepared.model_size_bytes,
            sample_ns=times,
        )
        for name, times in zip(names, zip(*sample_ns, strict=True), strict=True)
    )
    backend = "nccl" if device.type == "cuda" else "gloo"
    return Ranks(
        backend=backend,
        all_reduce=all_reduce_name(device),
        all_reduces=count,
        all_reduce_bytes=count * row.batch_size * config.dim * itemsize,
        all_reduce_us=round(all_reduce_s(prepared) * 1e6, 1),
        each=tuple(each),
    )


def over_ranks(measured: Measurement) -> Measurement:
    """The figures of all ranks from those of each.

    Memory is that of the rank with the largest peak; sizes, bandwidths and energy are
    sums. The GPUs' states are those of `card_states`; what else used a GPU is any
    rank's.
    """
    if measured.ranks is None:
        return measured
    of_ranks = from_every_rank(replace(measured, ranks=None))
    largest = max(of_ranks, key=lambda own: own.peak_memory_bytes)
    each = tuple(
        replace(
            rank,
            peak_memory_bytes=own.peak_memory_bytes,
            peak_allocated_bytes=own.peak_allocated_bytes,
            model_size_bytes=own.model_size_bytes,
            device_bandwidth_gb_s=own.device_bandwidth_gb_s,
        )
        for rank, own in zip(measured.ranks.each, of_ranks, strict=True)
    )
    size = sum(own.model_size_bytes for own in of_ranks)
    neighbours = chain.from_iterable(own.neighbours or () for own in of_ranks)
    return replace(
        measured,
        ranks=replace(measured.ranks, each=each),
        model_size_bytes=size,
        bandwidth_gb_s=measured.bandwidth_gb_s * size / measured.model_size_bytes,
        device_bandwidth_gb_s=summed(own.device_bandwidth_gb_s for own in of_ranks),
        peak_memory_bytes=largest.peak_memory_bytes,
        peak_allocated_bytes=largest.peak_allocated_bytes,
        build_peak_bytes=largest.build_peak_bytes,
        memory=largest.memory,
        joules_per_token=summed(own.joules_per_token for own in of_ranks),
        card=card_states([own.card for own in of_ranks]),
        card_problem=first_told([own.card_problem for own in of_ranks]),
        neighbours=tuple(dict.fromkeys(neighbours)) or None,
    )


def first_told(of_ranks: Sequence[str | None]) -> str | None:
    """What the first rank that says something says; None where none does.

    It is named unless all say the same.
    """
    index = next((rank for rank, told in enumerate(of_ranks) if told), None)
    if index is None or len(set(of_ranks)) == 1:
        return of_ranks[0]
    return f"rank {index}: {of_ranks[index]}"


def card_states(
    of_ranks: Sequence[tuple[CardState, ...] | None],
) -> tuple[CardState, ...] | None:
    """The states of the ranks' GPUs at each look; None where no rank knows its own.

    Clocks are the lowest, the temperature is the highest, power is the sum. Each limit
    names its rank.
    """
    known = {rank: states for rank, states in enumerate(of_ranks) if states}
    if not known:
        return None
    is_whole = len(known) == len(of_ranks)
    return tuple(
        CardState(
            clock_mhz=_known(min, (state.clock_mhz for state in look)),
            memory_clock_mhz=_known(min, (state.memory_clock_mhz for state in look)),
            temperature_c=_known(max, (state.temperature_c for state in look)),
            power_w=summed(state.power_w for state in look) if is_whole else None,
            limited_by=tuple(
                f"{limit} (rank {rank})"
                for rank, state in zip(known, look, strict=True)
                for limit in state.limited_by
            ),
        )
        for look in zip(*known.values(), strict=True)
    )


def _known(
    chosen: Callable[[Sequence[int]], int], values: Iterable[int | None]
) -> int | None:
    """One of the values that are known, if any is."""
    known = [value for value in values if value is not None]
    return chosen(known) if known else None


def all_reduce_s(prepared: PreparedRow) -> float:
    """The time that the sums of a decoding step take by themselves, slowest rank's."""
    row, config = prepared.row, prepared.engine.model.config
    device = prepared.prompt.device
    shape = (row.batch_size, 1, config.dim)
    x = torch.zeros(shape, dtype=getattr(torch, row.dtype), device=device)

    def step() -> None:
        for _ in range(2 * config.n_layers):
            sum_over_ranks(x)

    return slowest_s(step, device, row.capture)

"""What the ranks of rows measured, in words."""

from collections import Counter
from collections.abc import Iterable, Iterator
from statistics import median

from llama_perf.results.measurement import GB, Measurement
from llama_perf.results.ranks import RankFigures, Ranks
from llama_perf.words import counted


def ranks_notes(figures: Iterable[Measurement]) -> Iterator[str]:
    """How the rows of several ranks make their sums, a line for each way."""
    ways = Counter(one.ranks.all_reduce for one in figures if one.ranks)
    for way, count in ways.items():
        yield f"sums over the ranks by {way}: {counted(count, 'row')}"


def in_words(ranks: Ranks) -> list[str]:
    """The sums of a step, then each rank, a line for each."""
    sums = counted(ranks.all_reduces, "sum")
    text = f"{sums} a step by {ranks.all_reduce}, {ranks.all_reduce_bytes / 1e3:g} KB"
    if ranks.all_reduce_us is not None:
        text += f", {ranks.all_reduce_us:g} us by themselves"
    return [text, *(_of_rank(index, rank) for index, rank in enumerate(ranks.each))]


def _of_rank(index: int, rank: RankFigures) -> str:
    text = f"rank {index}, {rank.device}: peak {rank.peak_memory_bytes / GB:.2f} GB,"
    text += f" model {rank.model_size_bytes / GB:.2f} GB"
    if rank.device_bandwidth_gb_s is not None:
        text += f", {rank.device_bandwidth_gb_s:.1f} GB/s"
    if rank.sample_ns:
        text += f", a sample in {median(rank.sample_ns) / 1e9:.3f} s"
    return text

"""The table of docs/tensor-parallel.md: what a rank of Llama-70B takes, predicted."""

from functools import cache

from llama_perf.measure.prepare import predict_row
from llama_perf.results.measurement import GB
from llama_perf.rows.selection import load_set
from llama_perf.rows.spec import RowSpec
from scripts.doc_tables.document import Key, Place, Table

DEGREES = (2, 4, 8)


@cache
def rows() -> dict[Key, dict[int, RowSpec]]:
    """The fused rows of the set, by model and scheme, then by their ranks."""
    found: dict[Key, dict[int, RowSpec]] = {}
    for row in load_set("tensor-parallel"):
        scheme = row.quantization or f"none, {row.dtype}"
        scheme += ", int8 KV" if row.kv_cache_quantization else ""
        if row.fused:
            found.setdefault((row.model, scheme), {})[row.ranks] = row
    return found


def _draw(*key: str) -> tuple[list[str], list[str]]:
    predicted = [predict_row(rows()[key][degree]) for degree in DEGREES]
    sizes = [f"{of_rank.model_size_bytes / GB:.2f}" for of_rank in predicted]
    return [*sizes, *(f"{of_rank.peak_bytes / GB:.2f}" for of_rank in predicted)], []


TABLE = Table(
    place=Place("tensor-parallel.md", "ranks"),
    headers=[
        *("model", "scheme"),
        *(f"model GB of {degree}" for degree in DEGREES),
        *(f"peak GB of {degree}" for degree in DEGREES),
    ],
    keys=rows(),
    draw=_draw,
)

"""The tables of docs/sizes.md: model sizes and predicted peaks, and the published ones.

Sizes are of every native scheme, peaks of every row of the set `reference`.
"""

import math
from functools import cache
from typing import NamedTuple

import torch

from llama_perf.llama.config import ModelConfig, preset
from llama_perf.measure.predict import RowBytes, model_bytes
from llama_perf.measure.prepare import predict_row
from llama_perf.results.measurement import GB
from llama_perf.rows.schemes import AUTOQUANT, Scheme
from llama_perf.rows.selection import load_set
from llama_perf.rows.spec import RowSpec
from scripts.doc_tables.document import Place, Table
from scripts.doc_tables.stored import published

MODELS = ("Llama-2-7b-chat-hf", "Meta-Llama-3-8B")
# What a row of these models may take at most, GB: weights, embedding and caches as they
# have to be, and at most 0.1 for all else. By scheme, or by the dtype without one.
CEILINGS_GB = {
    "float32": (27.23, 32.28),
    "bfloat16": (13.64, 16.18),
    "int8wo": (7.1, 8.7),
    "int8dq": (7.1, 8.7),
    "autoquant": (7.1, 8.7),
    "fp6": (5.43, 6.81),
    "int4wo-64": (4.2, 5.4),
    "autoquant-int4": (4.2, 5.4),
    "uintx-4-64": (4.05, 5.22),
    "uintx-2-8": (4.0, 5.16),
    "sparse-marlin": (3.15, 4.23),
}
# Of Llama-3.1-8B by cache size: unquantized, and int8.
CACHE_CEILINGS_GB = {
    8192: (17.23, 16.71),
    16384: (18.31, 17.25),
    32768: (20.46, 18.34),
    65536: (24.75, 20.52),
    131072: (33.34, 24.88),
}


class Size(NamedTuple):
    """One line; `reference_bytes` is None where a scheme has only one layout."""

    model: str
    scheme: str | None
    dtype: str
    published_gb: float
    reference_bytes: int | None
    lean_bytes: int

    @property
    def key(self) -> tuple[str, str]:
        """The model and the scheme, as the table names them."""
        return self.model, self.scheme or f"none, {self.dtype}"

    @property
    def comparable_bytes(self) -> int:
        """In the layout whose size is to be the published one."""
        return self.reference_bytes or self.lean_bytes


@cache
def sizes() -> list[Size]:
    """Every size of the published table whose scheme is built natively."""
    lines = {}
    for row in load_set("reference"):
        model, scheme = row.model, row.quantization
        if model not in MODELS or scheme in AUTOQUANT:
            continue
        # The activations' dtype changes no packed weight.
        dtype = row.dtype if scheme is None else "bfloat16"
        lean = model_bytes(preset(model), scheme, dtype=getattr(torch, dtype))
        more = more_bytes_of_zeros(preset(model), scheme)
        gb = published(row).model_size_bytes / GB
        size = Size(model, scheme, dtype, gb, more and lean + more, lean)
        lines[size.key] = size
    return sorted(
        lines.values(), key=lambda size: (size.model, -size.published_gb, str(size))
    )


def more_bytes_of_zeros(config: ModelConfig, name: str | None) -> int | None:
    """The bytes by which zero points take more in torchao's layouts than in ours.

    The published runs stored those of uintx as int32, and beside each scale of
    sparse-marlin one of 16 bits that nothing read. None for other schemes.
    """
    scheme = None if name is None else Scheme.parse(name)
    if scheme is None or scheme.family not in {"uintx", "sparse-marlin"}:
        return None
    # Only the names of uintx have them.
    bits, group_size = 32 - (scheme.bits or 16), scheme.group_size or 128
    layer = sum(map(math.prod, config.linears.values()))
    weights = config.n_layers * layer + config.vocab_size * config.dim
    return weights // group_size * bits // 8


def _draw_size(*key: str) -> tuple[list[str], list[str]]:
    (size,) = (size for size in sizes() if size.key == key)
    cells = [f"{size.published_gb:.2f}"]
    for stored in (size.reference_bytes, size.lean_bytes):
        gb = (stored or 0) / 1e9
        cells += [f"{gb:.2f}", f"{gb / size.published_gb:.3f}"] if gb else ["", ""]
    return cells, []


_LAYOUTS = ("reference layout GB", "of published", "lean layout GB", "of published")
SIZES = Table(
    place=Place("sizes.md", "sizes"),
    headers=("model", "scheme", "published GB", *_LAYOUTS),
    keys=[size.key for size in sizes()],
    draw=_draw_size,
)


class Peak(NamedTuple):
    """The most memory that a row takes; its model may take `ceiling_gb`."""

    row: RowSpec
    published_gb: float
    ceiling_gb: float
    predicted: RowBytes

    @property
    def predicted_gb(self) -> float:
        """The predicted peak, GB."""
        return self.predicted.peak_bytes / 1e9


@cache
def peaks() -> list[Peak]:
    """Of every row of the published table, in its order."""
    return [
        Peak(
            row,
            published(row).peak_memory_bytes / GB,
            _ceiling_gb(row),
            predict_row(row),
        )
        for row in load_set("reference")
    ]


def _ceiling_gb(row: RowSpec) -> float:
    if row.cache_size is not None:
        return CACHE_CEILINGS_GB[row.cache_size][row.kv_cache is not None]
    return CEILINGS_GB[row.quantization or row.dtype][MODELS.index(row.model)]


def _draw_peak(name: str) -> tuple[list[str], list[str]]:
    (peak,) = (peak for peak in peaks() if f"`{peak.row.id}`" == name)
    predicted = peak.predicted
    parts = [predicted.model_size_bytes, predicted.embedding_bytes]
    parts += [predicted.cache_bytes, predicted.working_bytes]
    figures = (peak.published_gb, peak.predicted_gb, *(size / 1e9 for size in parts))
    return [f"{figure:.2f}" for figure in (*figures, peak.ceiling_gb)], []


_HEADERS = ["row", "published GB", "predicted GB", "weights", "embedding"]
PEAKS = Table(
    place=Place("sizes.md", "peaks"),
    headers=[*_HEADERS, "caches and mask", "working memory", "at most"],
    keys=[(f"`{row.id}`",) for row in load_set("reference")],
    draw=_draw_peak,
)

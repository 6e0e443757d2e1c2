"""The tables of docs/sizes.md: model sizes and predicted peaks, and the published ones.

Sizes are of every native scheme, peaks of every row of the set `reference`.
"""

import math
from dataclasses import astuple
from functools import cache
from typing import NamedTuple

import torch

from llama_perf.llama.config import ModelConfig
from llama_perf.llama.presets import preset
from llama_perf.measure.predict import model_bytes
from llama_perf.measure.prepare import predict_row
from llama_perf.results.measurement import GB
from llama_perf.rows.schemes import AUTOQUANT, Scheme
from llama_perf.rows.selection import load_set
from llama_perf.rows.spec import RowSpec
from scripts.doc_tables.document import Key, Place, Table
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

    published_gb: float
    reference_bytes: int | None
    lean_bytes: int


@cache
def sizes() -> dict[Key, Size]:
    """Every size of the published table whose scheme is built natively.

    By the model and the scheme, as the table names them.
    """
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
        name = scheme or f"none, {dtype}"
        lines[model, name] = Size(gb, more and lean + more, lean)
    order = sorted(lines, key=lambda key: (key[0], -lines[key].published_gb, key))
    return {key: lines[key] for key in order}


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
    size = sizes()[key]
    cells = [f"{size.published_gb:.2f}"]
    for stored in (size.reference_bytes, size.lean_bytes):
        gb = (stored or 0) / GB
        cells += [f"{gb:.2f}", f"{gb / size.published_gb:.3f}"] if gb else ["", ""]
    return cells, []


_LAYOUTS = ("reference layout GB", "of published", "lean layout GB", "of published")
SIZES = Table(
    place=Place("sizes.md", "sizes"),
    headers=("model", "scheme", "published GB", *_LAYOUTS),
    keys=sizes(),
    draw=_draw_size,
)


def ceiling_gb(row: RowSpec) -> float:
    """What a row of the published table may take at most."""
    if row.cache_size is not None:
        return CACHE_CEILINGS_GB[row.cache_size][row.kv_cache is not None]
    return CEILINGS_GB[row.quantization or row.dtype][MODELS.index(row.model)]


_ROWS = {f"`{row.id}`": row for row in load_set("reference")}


def _draw_peak(name: str) -> tuple[list[str], list[str]]:
    row = _ROWS[name]
    predicted, took = predict_row(row), published(row).peak_memory_bytes
    sizes = (took, predicted.peak_bytes, *astuple(predicted)[:4])
    figures = (*(size / GB for size in sizes), ceiling_gb(row))
    return [f"{figure:.2f}" for figure in figures], []


_HEADERS = ["row", "published GB", "predicted GB", "weights", "embedding"]
PEAKS = Table(
    place=Place("sizes.md", "peaks"),
    headers=[*_HEADERS, "caches and mask", "working memory", "at most"],
    keys=[(name,) for name in _ROWS],
    draw=_draw_peak,
)

"""The table of docs/sizes.md: every native scheme beside the published model sizes."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from llama_perf.checkpoints.reader import layer_shapes
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.presets import preset
from llama_perf.measure.predict import model_bytes
from llama_perf.rows.schemes import AUTOQUANT, Scheme
from scripts.doc_tables import peaks
from scripts.doc_tables.document import (
    PUBLISHED,
    Place,
    Table,
    github_table,
    place,
    select,
    text_between,
)

PLACE = place("sizes.md", "sizes")
MODELS = ("Llama-2-7b-chat-hf", "Meta-Llama-3-8B")
_HEADERS = (
    "model",
    "scheme",
    "published GB",
    "reference layout GB",
    "of published",
    "lean layout GB",
    "of published",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """One line; `reference_bytes` is None where a scheme has only one layout."""

    model: str
    scheme: str | None
    dtype: str
    published_gb: float
    reference_bytes: int | None
    lean_bytes: int

    @property
    def comparable_bytes(self) -> int:
        """In the layout whose size is to be the published one."""
        return self.reference_bytes or self.lean_bytes


@cache
def sizes() -> tuple[Size, ...]:
    """Every size of the published table whose scheme is built natively."""
    published_gb = {}
    with PUBLISHED.open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            model, scheme = line["model"], line["quantization"] or None
            if model not in MODELS or scheme in AUTOQUANT or not is_built(scheme):
                continue
            # The activations' dtype changes no packed weight.
            dtype = line["dtype"] if scheme is None else "bfloat16"
            published_gb[model, scheme, dtype] = float(line["model_size_gb"])
    return tuple(
        _size(model, scheme, dtype, published)
        for (model, scheme, dtype), published in sorted(
            published_gb.items(),
            key=lambda item: (item[0][0], -item[1], str(item[0][1])),
        )
    )


def is_built(scheme: str | None) -> bool:
    """Whether the scheme has native kernels; None is the unquantized model."""
    return scheme is None or "native" in Scheme.parse(scheme).kernels


def _size(model: str, scheme: str | None, dtype: str, published: float) -> Size:
    config, kind = preset(model), getattr(torch, dtype)
    lean = model_bytes(config, scheme, dtype=kind)
    more = 0 if scheme is None else more_bytes_of_zeros(config, Scheme.parse(scheme))
    return Size(
        model=model,
        scheme=scheme,
        dtype=dtype,
        published_gb=published,
        reference_bytes=lean + more if more else None,
        lean_bytes=lean,
    )


def tables(names: Sequence[str]) -> list[Table]:
    """The tables of sizes and of peaks; they have no rows to choose from."""
    select(names, ())
    return [
        Table(place=PLACE, text=markdown()),
        Table(place=peaks.PLACE, text=peaks.markdown()),
    ]


def more_bytes_of_zeros(config: ModelConfig, scheme: Scheme) -> int:
    """The bytes by which zero points take more in torchao's layouts than in ours.

    The published runs stored those of uintx as int32, and beside each scale of
    sparse-marlin one of 16 bits that nothing read.
    """
    if scheme.family == "uintx":
        assert scheme.bits is not None, f"{scheme.name} has no bits"
        assert scheme.group_size is not None, f"{scheme.name} has no groups"
        bits, group_size = 32 - scheme.bits, scheme.group_size
    elif scheme.family == "sparse-marlin":
        bits, group_size = 16, 128
    else:
        return 0
    layer = (math.prod(shape) for _, shape in layer_shapes(config) if len(shape) == 2)
    weights = config.n_layers * sum(layer) + config.vocab_size * config.dim
    return weights // group_size * bits // 8


def markdown() -> str:
    """The table between the document's two marks."""
    cells = [
        (
            size.model,
            size.scheme or f"none, {size.dtype}",
            f"{size.published_gb:.2f}",
            *_cells(size.reference_bytes, size.published_gb),
            *_cells(size.lean_bytes, size.published_gb),
        )
        for size in sizes()
    ]
    return github_table(cells, _HEADERS)


def _cells(stored: int | None, published_gb: float) -> tuple[str, str]:
    if stored is None:
        return "", ""
    return f"{stored / 1e9:.2f}", f"{stored / 1e9 / published_gb:.3f}"


def documented(where: Place = PLACE) -> str:
    """A table as docs/sizes.md has it, between its two marks."""
    return text_between(*where)

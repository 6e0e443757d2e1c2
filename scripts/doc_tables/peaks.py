"""The table of predicted peaks in docs/sizes.md, and the published ones."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache

from llama_perf.measure.predict import Prediction
from llama_perf.measure.prepare import predict_row
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from scripts.doc_tables.document import PUBLISHED, github_table, place

PLACE = place("sizes.md", "peaks")
# What a row may take at most, GB: weights, embedding and caches as they have to be,
# and at most 0.1 for all else. By model, and by scheme or by the dtype without one.
CEILINGS_GB = {
    "Llama-2-7b-chat-hf": {
        "float32": 27.23,
        "bfloat16": 13.64,
        "int8wo": 7.1,
        "int8dq": 7.1,
        "autoquant": 7.1,
        "fp6": 5.43,
        "int4wo-64": 4.2,
        "autoquant-int4": 4.2,
        "uintx-4-64": 4.05,
        "uintx-2-8": 4.0,
        "sparse-marlin": 3.15,
    },
    "Meta-Llama-3-8B": {
        "float32": 32.28,
        "bfloat16": 16.18,
        "int8wo": 8.7,
        "int8dq": 8.7,
        "autoquant": 8.7,
        "fp6": 6.81,
        "int4wo-64": 5.4,
        "autoquant-int4": 5.4,
        "uintx-4-64": 5.22,
        "uintx-2-8": 5.16,
        "sparse-marlin": 4.23,
    },
}
# Of Llama-3.1-8B by cache size: unquantized, and int8.
CACHE_CEILINGS_GB = {
    8192: (17.23, 16.71),
    16384: (18.31, 17.25),
    32768: (20.46, 18.34),
    65536: (24.75, 20.52),
    131072: (33.34, 24.88),
}
_HEADERS = (
    "row",
    "published GB",
    "predicted GB",
    "weights",
    "embedding",
    "caches and mask",
    "beside them",
    "at most",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """One line."""

    row: RowSpec
    published_gb: float
    ceiling_gb: float
    predicted: Prediction

    @property
    def predicted_gb(self) -> float:
        """The predicted peak, GB."""
        return self.predicted.peak_bytes / 1e9


@cache
def peaks() -> tuple[Peak, ...]:
    """Of every row of the published table, in its order."""
    with PUBLISHED.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return tuple(
        Peak(
            row=row,
            published_gb=float(line["peak_mem_gb"]),
            ceiling_gb=_ceiling_gb(row),
            predicted=predict_row(row),
        )
        for row, line in zip(selection.load_set("reference"), lines, strict=True)
    )


def _ceiling_gb(row: RowSpec) -> float:
    if row.cache_size is not None:
        return CACHE_CEILINGS_GB[row.cache_size][row.kv_cache is not None]
    return CEILINGS_GB[row.model][row.quantization or row.dtype]


def markdown() -> str:
    """The table between the document's two marks."""
    cells = [
        (
            f"`{peak.row.id}`",
            *(
                f"{figure:.2f}"
                for figure in (
                    peak.published_gb,
                    peak.predicted_gb,
                    peak.predicted.model_size_bytes / 1e9,
                    peak.predicted.embedding_bytes / 1e9,
                    peak.predicted.cache_bytes / 1e9,
                    peak.predicted.working_bytes / 1e9,
                    peak.ceiling_gb,
                )
            ),
        )
        for peak in peaks()
    ]
    return github_table(cells, _HEADERS)

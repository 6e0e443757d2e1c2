"""`llama-perf rows`: the rows of a set. Runs nothing; without --predict, no torch."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from tabulate import tabulate

from llama_perf.cli.selection import add_selection, shard
from llama_perf.errors import UserError
from llama_perf.quantize.registry import built_kernels
from llama_perf.rows import selection
from llama_perf.rows.schemes import AUTOQUANT, Scheme
from llama_perf.rows.spec import RowSpec

if TYPE_CHECKING:
    from llama_perf.measure.predict import Prediction

HELP = "list the rows of a set, or of every set"

_PREDICTED = ("model_size_gb", "peak_mem_gb")
_AUTOQUANT = "autoquant chooses on its device: no less than these sizes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_selection(parser)
    parser.add_argument(
        "--json", action="store_true", help="a JSON list, one object a row"
    )
    parser.add_argument(
        "--predict",
        action="store_true",
        help="add model size and peak memory in GB, computed from the shapes alone",
    )


def main(arguments: argparse.Namespace) -> int:
    """List the rows."""
    if arguments.set is None and arguments.rows is None:
        every = [
            row for name in selection.set_names() for row in selection.load_set(name)
        ]
        # A row may stand in several sets.
        listed = selection.select(list(dict.fromkeys(every)), arguments.row)
    else:
        listed = selection.load(
            set_name=arguments.set, file=arguments.rows, globs=arguments.row
        )
    if arguments.shard is not None:
        listed = shard(listed, arguments.shard)
    more: list[dict[str, float | None]] = [{} for _ in listed]
    notes: list[str] = []
    if arguments.predict:
        more, notes = _predicted(listed)
    if arguments.json:
        objects = [
            {"id": row.id, **asdict(row), "built": _built(row), **figures}
            for row, figures in zip(listed, more, strict=True)
        ]
        print(json.dumps(objects, indent=2))
    else:
        print(_table(listed, more))
        print(f"{len(listed)} rows")
    for note in notes:
        # Under --json the document stands alone on stdout.
        print(note, file=sys.stderr if arguments.json else sys.stdout)
    return 0


def _built(row: RowSpec) -> bool:
    """Whether the row's scheme is built on its kernels."""
    if row.quantization is None:
        return True
    return row.kernels in built_kernels(Scheme.parse(row.quantization))


def _predicted(
    listed: list[RowSpec],
) -> tuple[list[dict[str, float | None]], list[str]]:
    """Figures in GB under their names, None where there are none, and why."""
    from llama_perf.measure.prepare import predict_row

    figures, notes = [], []
    for row in listed:
        predicted: Prediction | None = None
        try:
            predicted = predict_row(row)
        except UserError as error:
            notes.append(f"{row.id}: not predicted: {error}")
        sizes: tuple[float | None, ...] = (None, None)
        if predicted is not None:
            found = (predicted.model_size_bytes, predicted.peak_bytes)
            sizes = tuple(round(each / 1e9, 4) for each in found)
        figures.append(dict(zip(_PREDICTED, sizes, strict=True)))
    if any(row.quantization in AUTOQUANT for row in listed):
        notes.append(_AUTOQUANT)
    return figures, notes


def _table(listed: list[RowSpec], more: list[dict[str, float | None]]) -> str:
    headers = (
        "id",
        "model",
        "quantization",
        "kernels",
        "dtype",
        "device",
        "cache",
        "built",
        *(more[0] if more else ()),
    )
    cells = [
        (
            row.id,
            row.model,
            row.quantization or "none",
            row.kernels,
            row.dtype,
            row.device,
            row.allocated_positions,
            "yes" if _built(row) else "no",
            *("-" if each is None else f"{each:.2f}" for each in figures.values()),
        )
        for row, figures in zip(listed, more, strict=True)
    ]
    return tabulate(cells, headers=headers, disable_numparse=True)

"""`llama-perf rows`: list the rows of a set. Runs nothing; torch only for --predict."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from tabulate import tabulate

from llama_perf.errors import UserError
from llama_perf.rows import selection
from llama_perf.rows.schemes import AUTOQUANT, Scheme
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import add_arguments as add_shared
from llama_perf.run.options import request_of
from llama_perf.run.request import Selection

HELP = "list the rows of a set (default: of every set)"
_AUTOQUANT = "autoquant chooses on its device: the sizes are lower bounds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_shared(
        parser,
        *("--set", "--rows", "--row", "--shard"),
        set="list a set of rows that comes with the package (default: every set)",
        rows="list the rows of your own TOML file instead of a set",
        row="list only the rows whose id matches the pattern (repeatable)",
        shard="list only the I-th of N parts: every N-th row, starting with the I-th",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list, one object a row"
    )
    parser.add_argument(
        "--predict",
        action="store_true",
        help="add model size and peak memory in GB, computed from the shapes only",
    )


def main(arguments: argparse.Namespace) -> int:
    """List the rows."""
    rows = _selected(request_of(arguments).selection)
    predictions: list[dict[str, float | None]] = [{} for _ in rows]
    notes: list[str] = []
    if arguments.predict:
        predictions, notes = _predicted(rows)
    if arguments.json:
        objects = [
            {"id": row.id, **asdict(row), "built": _built(row), **prediction}
            for row, prediction in zip(rows, predictions, strict=True)
        ]
        print(json.dumps(objects, indent=2))
    else:
        print(_table(rows, predictions))
        print(f"{len(rows)} rows")
    for note in notes:
        # With --json, stdout has nothing but the document.
        print(note, file=sys.stderr if arguments.json else sys.stdout)
    return 0


def _selected(asked: Selection) -> list[RowSpec]:
    """The rows asked for, of every set where neither a set nor a file was named."""
    if asked.set_name is not None or asked.rows_file is not None:
        return asked.rows()
    rows = [row for name in selection.set_names() for row in selection.load_set(name)]
    # A row may be in several sets.
    rows = selection.select(list(dict.fromkeys(rows)), asked.globs)
    return rows if asked.shard is None else selection.shard(rows, asked.shard)


def _built(row: RowSpec) -> bool:
    """Whether the row's scheme exists for its kernels."""
    if row.quantization is None:
        return True
    return row.kernels in Scheme.parse(row.quantization).kernels


def _predicted(
    rows: Sequence[RowSpec],
) -> tuple[list[dict[str, float | None]], list[str]]:
    """Each row's sizes in GB, None where there is no prediction, and notes why."""
    from llama_perf.measure.prepare import predict_row

    predictions: list[dict[str, float | None]] = []
    notes = []
    for row in rows:
        sizes: dict[str, float | None] = {"model_size_gb": None, "peak_mem_gb": None}
        try:
            prediction = predict_row(row)
        except UserError as error:
            notes.append(f"{row.id}: not predicted: {error}")
        else:
            if prediction is not None:
                sizes["model_size_gb"] = round(prediction.model_size_bytes / 1e9, 4)
                sizes["peak_mem_gb"] = round(prediction.peak_bytes / 1e9, 4)
        predictions.append(sizes)
    if any(row.quantization in AUTOQUANT for row in rows):
        notes.append(_AUTOQUANT)
    return predictions, notes


def _table(
    rows: Sequence[RowSpec], predictions: Sequence[dict[str, float | None]]
) -> str:
    table = [
        {
            "id": row.id,
            "model": row.model,
            "quantization": row.quantization or "none",
            "kernels": row.kernels,
            "dtype": row.dtype,
            "device": row.device,
            "cache": row.allocated_positions,
            "built": "yes" if _built(row) else "no",
        }
        | {
            name: "-" if size is None else f"{size:.2f}"
            for name, size in prediction.items()
        }
        for row, prediction in zip(rows, predictions, strict=True)
    ]
    return tabulate(table, headers="keys", disable_numparse=True)

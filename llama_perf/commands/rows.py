"""`llama-perf rows`: the rows of a set. Runs nothing and imports no torch."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from tabulate import tabulate

from llama_perf import rows
from llama_perf.commands.selection import add_selection
from llama_perf.quantize.registry import built_kernels
from llama_perf.scheme import Scheme
from llama_perf.spec import RowSpec

HELP = "list the rows of a set, or of every set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_selection(parser)
    parser.add_argument(
        "--json", action="store_true", help="a JSON list, one object a row"
    )


def main(arguments: argparse.Namespace) -> int:
    """List the rows."""
    if arguments.set is None and arguments.rows is None:
        every = [row for name in rows.set_names() for row in rows.load_set(name)]
        # A row may stand in several sets.
        listed = rows.select(list(dict.fromkeys(every)), arguments.row)
    else:
        listed = rows.load(
            set_name=arguments.set, file=arguments.rows, globs=arguments.row
        )
    if arguments.json:
        objects = [
            {"id": row.id, **asdict(row), "built": _built(row)} for row in listed
        ]
        print(json.dumps(objects, indent=2))
    else:
        print(_table(listed))
        print(f"{len(listed)} rows")
    return 0


def _built(row: RowSpec) -> bool:
    """Whether the row's scheme is built on its kernels."""
    if row.quantization is None:
        return True
    return row.kernels in built_kernels(Scheme.parse(row.quantization))


def _table(listed: list[RowSpec]) -> str:
    headers = (
        "id",
        "model",
        "quantization",
        "kernels",
        "dtype",
        "device",
        "cache",
        "built",
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
        )
        for row in listed
    ]
    return tabulate(cells, headers=headers, disable_numparse=True)

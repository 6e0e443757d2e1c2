"""`llama-perf rows`: list the rows of a set. Runs nothing; torch only for --predict."""

import argparse
import json
import sys
from dataclasses import asdict
from importlib.util import find_spec

from tabulate import tabulate

from llama_perf.errors import UserError
from llama_perf.rows import plugins, selection
from llama_perf.rows.schemes import AUTOQUANT, Scheme
from llama_perf.rows.spec import RowSpec
from llama_perf.run.read_options import add_shared, request_of
from llama_perf.words import counted

HELP = "list the rows of a set (default: of every set)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_shared(
        parser,
        *("--set", "--rows", "--row", "--shard"),
        set="list a set of rows, this package's or another's (default: every set)",
        rows="list the rows of your own TOML file instead of a set",
        row="list only the rows whose id or name matches the pattern (repeatable)",
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
    asked = request_of(arguments)
    named = asked.set is not None or asked.rows is not None
    rows = asked.selected(None if named else selection.every_row())
    notes = _places(None if asked.rows else asked.set, every=not named)
    sizes: list[dict[str, float | None]] = [{} for _ in rows]
    if arguments.predict:
        shared = any(row.ranks > 1 for row in rows)
        sizes = [_predicted(row, notes, shared=shared) for row in rows]
        if shared:
            notes.append(
                "of several ranks (tp-N) model_size_gb and peak_mem_gb are one rank's"
            )
    if arguments.predict and any(row.quantization in AUTOQUANT for row in rows):
        notes.append("autoquant chooses on its device: the sizes are lower bounds")
    if arguments.json:
        objects = [
            {"id": row.id, **asdict(row), "built": _built(row), **of_row}
            for row, of_row in zip(rows, sizes, strict=True)
        ]
        print(json.dumps(objects, indent=2))
    else:
        lines = [_line(row, of_row) for row, of_row in zip(rows, sizes, strict=True)]
        if any(row.name for row in rows):
            names = ({"name": row.name or "-"} for row in rows)
            lines = [name | line for name, line in zip(names, lines, strict=True)]
        print(tabulate(lines, headers="keys", disable_numparse=True))
        print(counted(len(rows), "row"))
    for note in notes:
        # With --json, stdout has nothing but the document.
        print(note, file=sys.stderr if arguments.json else sys.stdout)
    return 0


def _built(row: RowSpec) -> bool:
    """Whether the row's scheme exists for its kernels, and its package is here."""
    if row.quantization is None:
        return True
    scheme = Scheme.parse(row.quantization, kernels=row.kernels)
    if scheme.config is not None and find_spec(scheme.config.package) is None:
        return False
    return row.kernels in scheme.kernels


def _places(name: str | None, *, every: bool) -> list[str]:
    """Where the sets that are listed come from, if not from llama-perf itself.

    Of `every` set also what is wrong with one, which the list then lacks.
    """
    notes = []
    for offer in plugins.offers(plugins.SETS):
        if not every and offer.name != name:
            continue
        source = f"set {offer.name}: from {offer.place}"
        try:
            selection.installed_set(offer.name)
            selection.load_installed(offer)
        except UserError as error:
            source = f"set {offer.name}: not listed: {error}"
        notes.append(source)
    return notes


def _predicted(
    row: RowSpec, notes: list[str], *, shared: bool
) -> dict[str, float | None]:
    """The row's sizes in GB, None where there is no prediction; `notes` get why.

    With `shared` some rows have several ranks: then those of all ranks too.
    """
    from llama_perf.measure.prepare import predict_row

    sizes = ("model_size_gb", "peak_mem_gb")
    of_all = tuple(f"{size}_of_all" for size in sizes) if shared else ()
    try:
        prediction = predict_row(row)
    except UserError as error:
        notes.append(f"{row.id}: not predicted: {error}")
        return dict.fromkeys((*sizes, *of_all))
    if prediction.is_bound:
        notes.append(
            f"{row.id}: upper bounds: its scheme cannot be tried here, and its weights"
            " count as unquantized"
        )
    own = (prediction.model_size_bytes, prediction.peak_bytes)
    every = [row.ranks * count for count in own]
    counts = zip((*sizes, *of_all), (*own, *every), strict=False)
    return {name: round(count / 1e9, 4) for name, count in counts}


def _line(row: RowSpec, sizes: dict[str, float | None]) -> dict[str, object]:
    line = {
        "id": row.id,
        "model": row.model,
        "quantization": row.quantization or "none",
        "kernels": row.kernels,
        "dtype": row.dtype,
        "device": row.device,
        "cache": row.allocated_positions,
        "built": "yes" if _built(row) else "no",
    }
    shown = {name: "-" if gb is None else f"{gb:.2f}" for name, gb in sizes.items()}
    return line | shown

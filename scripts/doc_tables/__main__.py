"""`python -m scripts.doc_tables TABLE`: compute a table of `docs/` and print it.

With --write it replaces the one in the document. Rows that were not computed keep the
figures that stand there.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import chain
from pkgutil import resolve_name

from scripts.doc_tables.document import Table

# Imported when asked for: most of them load a model's libraries, some only torch.
TABLES = {
    "closeness": ["doc_tables.closeness:TABLE"],
    "redraws": ["doc_tables.closeness:REDRAWS"],
    "caches": ["doc_tables.caches:TABLE"],
    "twins": ["doc_tables.twins:TABLE"],
    "configs": ["doc_tables.configs:TABLE"],
    "operators": ["doc_tables.operators:TABLE"],
    "tests": ["doc_tables.times_of_tests:TABLE"],
    "sizes": ["doc_tables.sizes:SIZES", "doc_tables.sizes:PEAKS"],
    "ranks": ["doc_tables.ranks:TABLE"],
    "performance": ["doc_tables.stored:PERFORMANCE"],
    "limits": ["doc_tables.stored:LIMITS"],
    "gate": ["studies.gate_simulation:TABLE"],
    "pairs": ["studies.pairs_simulation:TABLE"],
    "kernels": ["studies.kernel_resources:OF_PRODUCTS"],
    "fused": ["studies.kernel_resources:OF_FUSED"],
    "caps": ["studies.kernel_caps:TABLE"],
    "tokens": ["studies.token_times:TABLE"],
    "attention": ["studies.kernel_resources:OF_ATTENTION"],
    "persistent": ["studies.kernel_resources:OF_LAYERS"],
}


def tables(name: str) -> list[Table]:
    """The tables of that name in TABLES, imported now."""
    return [resolve_name(f"scripts.{place}") for place in TABLES[name]]


def main(argv: Sequence[str] | None = None) -> str | None:
    """Compute and print what is asked for; returns the limits that its figures break.

    Exits with a line if a row is named that there is not.
    """
    parser = argparse.ArgumentParser(
        prog="python -m scripts.doc_tables",
        description="Compute a table of docs/ and print it.",
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument(
        "rows", nargs="*", metavar="NAME", help="only rows with this first cell"
    )
    parser.add_argument(
        "--write", action="store_true", help="replace the table in the document"
    )
    arguments = parser.parse_args(argv)
    chosen, rows = tables(arguments.table), arguments.rows
    known = {key[0] for table in chosen for key in table.keys}
    if missing := sorted({*rows} - known):
        sys.exit(f"no row of the table: {', '.join(missing)}")
    problems = [table.compute(rows, write=arguments.write) for table in chosen]
    return "\n".join(chain(*problems)) or None


if __name__ == "__main__":
    sys.exit(main())

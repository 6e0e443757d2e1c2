"""`python -m scripts.doc_tables TABLE`: compute a table of `docs/` and print it.

With --write it replaces the one in the document. Rows that were not computed keep the
figures that stand there.
"""

import argparse
import sys
from importlib import import_module
from operator import attrgetter

from scripts.doc_tables.document import Table, replace_between

# Imported when asked for: most of them load a model's libraries, some only torch.
TABLES = {
    "closeness": "scripts.doc_tables.closeness:TABLE.tables",
    "redraws": "scripts.doc_tables.closeness:REDRAWS.tables",
    "caches": "scripts.doc_tables.caches:TABLE.tables",
    "twins": "scripts.doc_tables.twins:TABLE.tables",
    "operators": "scripts.doc_tables.operators:TABLE.tables",
    "sizes": "scripts.doc_tables.sizes:tables",
    "performance": "scripts.doc_tables.stored:performance",
    "limits": "scripts.doc_tables.stored:limits",
    "gate": "scripts.studies.gate_simulation:tables",
}
"""Functions that compute tables, with the rows that are named, or all of them, anew."""


def compute(table: str, names: list[str]) -> list[Table]:
    """The tables of that name; exits with a line if one of `names` is no row of it."""
    module, _, function = TABLES[table].partition(":")
    tables: list[Table] = attrgetter(function)(import_module(module))(names)
    return tables


def main() -> str | None:
    """Compute and print one table; returns the limits that its figures break."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.doc_tables",
        description="Compute a table of docs/ and print it.",
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument(
        "rows", nargs="*", metavar="NAME", help="only these schemes or kinds of cache"
    )
    parser.add_argument(
        "--write", action="store_true", help="replace the table in the document"
    )
    arguments = parser.parse_args()
    tables = compute(arguments.table, arguments.rows)
    for table in tables:
        print(table.text)
        if arguments.write:
            replace_between(*table.place, table.text)
    return "\n".join(line for table in tables for line in table.problems) or None


if __name__ == "__main__":
    sys.exit(main())

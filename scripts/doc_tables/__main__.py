"""`python -m scripts.doc_tables TABLE`: compute a table of `docs/` and print it.

With --write it replaces the one in the document. Rows that were not computed keep the
figures that stand there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterable, Sequence

from scripts.doc_tables.document import Place, replace_between


def _closeness(names: Sequence[str], write: bool) -> str | None:
    from scripts.doc_tables import closeness
    from scripts.doc_tables.smollm2 import scheme_figures

    schemes = _named(names, {scheme for scheme, _, _ in closeness.ROWS})
    rows = {key: row for key, row in closeness.ROWS.items() if key[0] in schemes}
    measured = {}
    for (scheme, kernels, reference), limits in rows.items():
        _say(f"{scheme} ({kernels}), compared with the {reference} model")
        figures = scheme_figures(scheme, kernels, limits.length, reference)
        measured[scheme, kernels, reference] = figures.closeness
    _show(closeness.markdown(measured), closeness.PLACE, write)
    return _lines(
        f"{'.'.join(key)}: {problem}"
        for key, limits in rows.items()
        for problem in limits.broken_by(measured[key])
    )


def _redraws(names: Sequence[str], write: bool) -> str | None:
    from scripts.doc_tables import closeness
    from scripts.doc_tables.redraws import redraw

    schemes = _named(names, {scheme for scheme, _ in closeness.REDRAWN})
    drawn = {}
    for scheme, kernels in closeness.REDRAWN:
        if scheme in schemes:
            _say(f"{scheme} ({kernels})")
            drawn[scheme, kernels] = redraw(scheme, kernels)
    _show(closeness.redraws_markdown(drawn), closeness.REDRAWS_PLACE, write)
    return None


def _caches(names: Sequence[str], write: bool) -> str | None:
    from scripts.doc_tables import caches

    drawn = {kind: caches.redraw(kind) for kind in _named(names, caches.LIMITS)}
    _show(caches.markdown(drawn), caches.PLACE, write)
    return None


def _twins(names: Sequence[str], write: bool) -> str | None:
    from scripts.doc_tables import twins

    pairs = {}
    for scheme in _named(names, twins.TWINS):
        _say(scheme)
        pairs[scheme] = twins.twins(scheme)
    _show(twins.markdown(pairs), twins.PLACE, write)
    return _lines(
        f"{scheme}: native is further off than torchao"
        for scheme, pair in pairs.items()
        if pair.further
    )


def _operators(names: Sequence[str], write: bool) -> str | None:
    from scripts.doc_tables import operators

    schemes = _named(names, {scheme for scheme, _ in operators.SCHEMES})
    exactness = {
        key: operators.operator_db(*key)
        for key in operators.SCHEMES
        if key[0] in schemes
    }
    _show(operators.markdown(exactness), operators.PLACE, write)
    return _lines(
        f"{'.'.join(key)}: {min(by_tokens.values()):.0f} dB"
        for key, by_tokens in exactness.items()
        if min(by_tokens.values()) < operators.LEAST_DB
    )


def _sizes(names: Sequence[str], write: bool) -> str | None:
    from scripts.doc_tables import peaks, sizes

    _named(names, ())
    for table in (sizes, peaks):
        _show(table.markdown(), table.PLACE, write)
    return None


def _performance(names: Sequence[str], write: bool) -> str | None:
    from scripts.doc_tables import performance

    _named(names, ())
    _show(performance.markdown(), performance.PLACE, write)
    return None


def _gate(names: Sequence[str], write: bool) -> str | None:
    from scripts.studies import gate_simulation

    _named(names, ())
    table, rare = gate_simulation.markdown()
    _show(table, gate_simulation.PLACE, write)
    return None if rare else "more false alarms than one run in a thousand"


def _limits(names: Sequence[str], write: bool) -> str | None:
    from scripts.doc_tables import limits

    _named(names, ())
    _show(limits.markdown(), limits.PLACE, write)
    return None


TABLES: dict[str, Callable[[Sequence[str], bool], str | None]] = {
    "closeness": _closeness,
    "redraws": _redraws,
    "caches": _caches,
    "twins": _twins,
    "operators": _operators,
    "sizes": _sizes,
    "performance": _performance,
    "gate": _gate,
    "limits": _limits,
}
"""Each computes its table for the rows that are named, all if none is, and prints it.

What it returns says which figures break their limits.
"""


def _named(names: Sequence[str], known: Collection[str]) -> list[str]:
    if missing := set(names) - set(known):
        sys.exit(f"no row of the table: {', '.join(sorted(missing))}")
    return [name for name in known if name in names or not names]


def _show(table: str, place: Place, write: bool) -> None:
    print(table)
    if write:
        replace_between(*place, table)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _lines(problems: Iterable[str]) -> str | None:
    return "\n".join(problems) or None


def main() -> str | None:
    """Compute and print one table; returns the limits that its figures break."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.doc_tables",
        description="Compute a table of docs/ and print it.",
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument(
        "rows", nargs="*", metavar="NAME", help="only these schemes or cache kinds"
    )
    parser.add_argument(
        "--write", action="store_true", help="replace the table in the document"
    )
    arguments = parser.parse_args()
    return TABLES[arguments.table](arguments.rows, arguments.write)


if __name__ == "__main__":
    sys.exit(main())

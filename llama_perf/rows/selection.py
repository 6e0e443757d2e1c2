"""Sets of rows: the TOML files of this package, installed ones, and a user's own.

A file is a list of `[[row]]` tables with the fields of `RowSpec`. An optional
`[defaults]` table has values for every row of the file. A table `limits` in either
sets limits of the gate.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

from llama_perf.errors import RecordError, SpecError, UserError
from llama_perf.file_kinds import described_text
from llama_perf.files import read_text
from llama_perf.metrics import LIMIT_FIELDS
from llama_perf.rows import plugins
from llama_perf.rows.limit_overrides import check_names
from llama_perf.rows.plugins import Offer
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import from_plain, parse_toml
from llama_perf.words import counted, did_you_mean, shown


def set_names() -> list[str]:
    """The names of the sets that come with the package."""
    names = (Path(entry.name) for entry in files(__package__).iterdir())
    return sorted(name.stem for name in names if name.suffix == ".toml")


def installed_sets() -> list[Offer]:
    """The sets that other packages add, but for those whose names are refused."""
    return list(plugins.usable(plugins.SETS, set_names().__contains__))


def installed_set(name: str) -> Offer | None:
    """The set of that name which a package adds, or None.

    Raises SpecError for a name that two packages have.
    """
    return plugins.offered(plugins.SETS, name, set_names().__contains__, field="set")


def load_set(name: str) -> list[RowSpec]:
    """The rows of a set, this package's or another's.

    Raises SpecError for a name that is none, RecordError for a wrong file of another
    package.
    """
    if name not in set_names():
        if (offer := installed_set(name)) is not None:
            return load_installed(offer)
        names = [*set_names(), *(offer.name for offer in installed_sets())]
        raise SpecError("set", name, f"allowed: {', '.join(names)}", known=names)
    text = files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return _parse(text, source=f"rows/{name}.toml")


def load_installed(offer: Offer) -> list[RowSpec]:
    """The rows of a set that another package adds; raises RecordError."""
    text = read_text(plugins.rows_file(offer), error=RecordError)
    return _parse(text, source=f"set {offer.name} of {offer.place}")


def every_row() -> list[RowSpec]:
    """The rows of all sets, each once. Another package's wrong file has none."""
    rows: dict[str, RowSpec] = {}
    for row in chain.from_iterable(map(load_set, set_names())):
        rows.setdefault(row.id, row)
    for offer in installed_sets():
        with suppress(UserError):
            for row in load_installed(offer):
                rows.setdefault(row.id, row)
    return list(rows.values())


def load_file(path: Path) -> list[RowSpec]:
    """The rows of a user's file; raises RecordError naming file, row and field."""
    return _parse(read_text(path, error=RecordError), source=str(path))


def _parse(text: str, *, source: str) -> list[RowSpec]:
    if text.startswith("{") and (other := described_text(text)) is not None:
        raise RecordError(f"{source}: {other}")
    data = parse_toml(text, source=source)
    if unknown := sorted(data.keys() - {"defaults", "row"}):
        raise RecordError(
            f"{source}: {unknown[0]}: unknown table; allowed: [defaults], [[row]]"
        )
    defaults, tables = data.get("defaults", {}), data.get("row", [])
    if not isinstance(defaults, dict):
        raise RecordError(f"{source}: defaults: it must be a table, [defaults]")
    if not isinstance(tables, list) or not tables:
        raise RecordError(f"{source}: it has no rows; write them as [[row]] tables")
    numbered = enumerate(tables, start=1)
    rows = [_row(defaults, one, f"{source}: row {number}") for number, one in numbered]
    numbers: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        named = [] if row.name is None else [("name", row.name)]
        for kind, text in [("id", row.id), *named]:
            first = numbers.setdefault(text, number)
            if first != number and not _one_scheme(row, rows[first - 1], kind):
                raise RecordError(
                    f"{source}: rows {first} and {number} have one {kind}, {text!r}"
                )
    return rows


def _one_scheme(row: RowSpec, other: RowSpec, kind: str) -> bool:
    """Whether two rows may have one name: it names the config that both have."""
    same = row.quantization == other.quantization
    return kind == "name" and row.names_scheme and same


def _row(defaults: dict[str, Any], table: object, source: str) -> RowSpec:
    if not isinstance(table, dict):
        raise RecordError(
            f"{source}: {shown(table)} is not a table; write it as [[row]]"
        )
    fields = {**defaults, **table}
    common, own = defaults.get("limits"), table.get("limits")
    if isinstance(common, dict) and isinstance(own, dict):
        fields["limits"] = {**common, **own}
    known = [field.name for field in dataclasses.fields(RowSpec)]
    check_names(fields, known, "field", source)
    if isinstance(fields.get("limits"), dict):
        check_names(fields["limits"], LIMIT_FIELDS, "limit", f"{source}: limits")
    return from_plain(RowSpec, fields, source=source)


def select(
    rows: Sequence[RowSpec],
    globs: Sequence[str],
    *,
    place: str = "",
    words: str | None = "",
) -> list[RowSpec]:
    """The rows whose id or name matches any of `globs`, or all rows without globs.

    `place` says in words where the rows are from, `words` are the options that list
    them, None where no command does. Raises UserError for a glob that matches no row.
    """
    for glob in globs:
        if not any(_matches(row, glob) for row in rows):
            names = [name for row in rows for name in (row.id, row.name) if name]
            # A table's names lack the parts that all of its rows share.
            parts = f"*{glob.replace('.', '*')}*"
            close = fnmatch.filter(names, parts)[:1]
            meant = did_you_mean(glob, names)
            if close:
                meant = f"did you mean {close[0]}? "
            which = counted(len(rows), "row")
            ending = f"there are {which}"
            if words is not None:
                ending = f"`llama-perf rows{words}` lists the {which}"
            raise UserError(
                f"row: no row{place} matches {shown(glob)}; {meant}{ending}"
            )
    wanted = globs or ["*"]
    return [row for row in rows if any(_matches(row, glob) for glob in wanted)]


def _matches(row: RowSpec, glob: str) -> bool:
    names = filter(None, (row.id, row.name))
    return any(fnmatch.fnmatchcase(name, glob) for name in names)


def quantized(rows: Sequence[RowSpec]) -> list[RowSpec]:
    """The rows of which anything is quantized; raises UserError where none is."""
    found = [row for row in rows if row.is_quantized]
    if not found:
        raise UserError(
            f"row: of {counted(len(rows), 'selected row')} none is quantized, so there"
            " is nothing to compare; choose others by --set, --rows or --row"
        )
    return found


def shard(rows: Sequence[RowSpec], text: str) -> list[RowSpec]:
    """The part "I/N" of some rows: every N-th from the I-th on; raises SpecError."""
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count <= len(rows):
        most = f"the {counted(len(rows), 'row')} selected"
        raise SpecError("shard", text, f"allowed: I/N, I from 1 to N, N up to {most}")
    return list(rows[number - 1 :: count])

"""`python -m scripts.doc_schema`: the JSON schemas of the files that are stored.

They follow from the types of `llama_perf/results/`. With --write they replace those in
`docs/schema/`.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from llama_perf.results.baselines import Baseline
from llama_perf.results.closeness_report import ClosenessReport
from llama_perf.results.diff import Diff
from llama_perf.results.history import HistoryLine
from llama_perf.results.run import Report
from scripts import ROOT

FOLDER = ROOT / "docs" / "schema"
COMMAND = "python -m scripts.doc_schema --write"
TYPES = {
    "results.json": Report,
    "baseline.json": Baseline,
    "diff.json": Diff,
    "history.json": HistoryLine,
    "closeness.json": ClosenessReport,
}
"""The type that each file of `docs/schema/` describes."""


def schema_of(kind: type) -> dict[str, Any]:
    """The JSON schema of a record, which allows fields that it does not know.

    A reader of another program then goes on reading when a field is added.
    """
    schema = TypeAdapter(kind).json_schema()
    version = schema["properties"]["schema_version"]
    versions = version.get("enum", [version.get("const")])
    title = f"{kind.__name__}, schema_version {' or '.join(map(str, versions))}"
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    opened: dict[str, Any] = _opened(schema)
    # Without them a file is of neither kind.
    opened["required"] = ["kind", "schema_version", *opened["required"]]
    return head | opened


def _opened(schema: Any) -> Any:
    """The schema without what refuses unknown fields, and without derived titles."""
    if isinstance(schema, list):
        return [_opened(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: (
            {field: _opened(part) for field, part in value.items()}
            if name in {"properties", "$defs"}
            else _opened(value)
        )
        for name, value in schema.items()
        if (name, value) != ("additionalProperties", False) and name != "title"
    }


def drawn() -> dict[str, str]:
    """The text of each file of `docs/schema/`."""
    return {
        name: json.dumps(schema_of(kind), indent=2) + "\n"
        for name, kind in TYPES.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print the schemas, or write them."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.doc_schema",
        description="Print the JSON schemas of results and baselines.",
    )
    parser.add_argument(
        "--write", action="store_true", help="replace the files in docs/schema/"
    )
    write = parser.parse_args(argv).write
    for name, text in drawn().items():
        if write:
            FOLDER.mkdir(exist_ok=True)
            (FOLDER / name).write_text(text, encoding="utf-8")
        else:
            print(text, end="")


if __name__ == "__main__":
    main()

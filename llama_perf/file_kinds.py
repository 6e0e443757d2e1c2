"""What a file is that was given where another kind is read, and which command reads it.

Looks at the names in a document only: knows no record.
"""

import json
import tomllib
from collections.abc import Mapping

_BASELINE = (
    "it is a baseline: `llama-perf diff FILE OTHER` compares it, and `llama-perf"
    " baseline show` prints those of a folder"
)
_REPORT = (
    "it has the results of a run: `llama-perf report FILE` prints them, and"
    " `llama-perf baseline record --from FILE` makes them a baseline"
)
_ROWS = "it is a file of rows: `llama-perf rows --rows FILE` lists them"
_SAVE = "it is a save of pytest-benchmark: `pytest-benchmark compare FILE` prints it"
_OWN_SAVE = (
    "it is a save of pytest-benchmark with rows of llama-perf: `pytest tests/perf"
    " --benchmark-compare=FILE` compares with it"
)
_DIFF = (
    "it is a comparison that `llama-perf diff` wrote, which nothing reads again; give"
    " the files that it compared"
)
_HISTORY = (
    "it is a device's history: `llama-perf history show --history FOLDER` draws those"
    " of a folder"
)
_TRENDS = "it has the trends that `llama-perf history show` draws, for other programs"
_CLOSENESS = (
    "it has the closeness of rows without their speed, which `llama-perf closeness"
    " --add-to RESULTS` puts beside that"
)
_BY_KIND = {
    "llama-perf baseline": _BASELINE,
    "llama-perf report": _REPORT,
    "llama-perf diff": _DIFF,
    "llama-perf history": _HISTORY,
    "llama-perf trends": _TRENDS,
    "llama-perf closeness": _CLOSENESS,
}


def described(fields: Mapping[str, object]) -> str | None:
    """What a JSON document with these fields is; None where it is none of ours."""
    if "benchmarks" in fields:
        return _OWN_SAVE if "llama_perf" in fields else _SAVE
    kind = fields.get("kind")
    return _BY_KIND.get(kind) if isinstance(kind, str) else None


def described_text(text: str) -> str | None:
    """What a text is that cannot be read as what it should be; None: not known."""
    try:
        # TOML never begins with a brace.
        if text.lstrip().startswith("{"):
            return _described_json(text.lstrip())
        return _ROWS if "row" in tomllib.loads(text) else None
    except (ValueError, RecursionError):
        return None


def _described_json(text: str) -> str | None:
    document, end = json.JSONDecoder().raw_decode(text)
    if text[end:].strip() and document.get("kind") != "llama-perf history":
        # Only a history has a document in each line.
        return None
    return described(document)

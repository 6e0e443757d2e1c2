"""A report as the JSON document that a run writes, to be read again."""

from __future__ import annotations

from llama_perf.report.formats import report_format
from llama_perf.strict_json import to_json

report_format("json", ".json")(to_json)

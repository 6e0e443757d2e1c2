"""What a row's test says in JUnit's XML: docs/results.md has the list."""

from collections.abc import Iterator

from llama_perf.metric import value_of
from llama_perf.results.disturbance import disturbance
from llama_perf.results.run import Comparison, RowResult

_FIGURES = {
    name: name
    for name in ("tok_s", "sample_spread", "decode_tok_s", "peak_memory_bytes")
} | {"text_closeness_db": "closeness.db"}


def junit_properties(
    result: RowResult, comparison: Comparison
) -> Iterator[tuple[str, object]]:
    """What `--junitxml` writes of a row: what is known of it, and why it failed."""
    yield "row", result.id
    if result.row.name is not None:
        yield "name", result.row.name
    yield "verdict", comparison.verdict.value
    for name, source in _FIGURES.items():
        value = value_of(result.measurement, source)
        if value is not None:
            yield name, value
    if words := disturbance(result, comparison):
        yield "disturbed", words
    if comparison.failed or result.measurement is None:
        yield "reason", comparison.reason

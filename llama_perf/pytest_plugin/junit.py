"""What a row's test says in JUnit's XML: docs/results.md has the list."""

from collections.abc import Iterator

from llama_perf.results.disturbance import disturbance
from llama_perf.results.run import Comparison, RowResult

_FIGURES = ("tok_s", "sample_spread", "decode_tok_s", "peak_memory_bytes")


def junit_properties(
    result: RowResult, comparison: Comparison
) -> Iterator[tuple[str, object]]:
    """What `--junitxml` writes of a row: what is known of it, and why it failed."""
    yield "row", result.id
    if result.row.name is not None:
        yield "name", result.row.name
    yield "verdict", comparison.verdict.value
    for figure in _FIGURES:
        value = getattr(result.measurement, figure, None)
        if value is not None:
            yield figure, value
    if words := disturbance(result, comparison):
        yield "disturbed", words
    if comparison.failed or result.measurement is None:
        yield "reason", comparison.reason

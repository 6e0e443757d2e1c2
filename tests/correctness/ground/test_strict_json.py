import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_perf.errors import RecordError
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import RowResult
from llama_perf.strict_json import from_json, parse_json, to_json
from tests.correctness.support.errors import refusal
from tests.correctness.support.record_samples import MEASUREMENT, measured

RESULT = measured()


def test_round_trip_with_a_list_of_numbers_on_one_line() -> None:
    assert from_json(RowResult, to_json(RESULT), source="f") == RESULT
    assert '"sample_ns": [ 1950000000, 2050000000 ]' in to_json(RESULT)


@given(
    st.floats(min_value=1e-9, max_value=1e12),
    st.lists(st.integers(min_value=1, max_value=2**62), max_size=20),
)
def test_round_trip_of_any_figures(tok_s: float, samples: list[int]) -> None:
    measured = replace(MEASUREMENT, tok_s=tok_s, sample_ns=tuple(samples))
    assert from_json(Measurement, to_json(measured), source="f") == measured


@pytest.mark.parametrize(
    ("dotted", "value", "message"),
    [
        ("measurement.tok_s", "fast", "measurement.tok_s: "),
        ("measurement.toks", 1, "measurement.toks: unknown field"),
        ("row.colour", 1, "row.colour: unknown field"),
        ("measurement.tok_s", None, "measurement.tok_s: the field is missing"),
        ("measurement.tok_s", float("nan"), "measurement.tok_s: "),
        ("measurement.sample_ns", [1.5], "sample_ns.0: "),
        ("status", "DONE", "status: 'DONE' is not allowed; allowed: 'MEASURED', "),
        ("row.dtype", "bf16", "row: dtype: 'bf16' is not allowed"),
        ("row.compile", 1, "row.compile: "),
        ("row.fused", 1, "row.fused: 1 is not allowed; allowed: true or false or text"),
        ("row.fused", [True], "row.fused: [true] is not allowed; allowed: true or"),
        ("measurement.weights", 1, "weights: 1 is not allowed; allowed: text"),
    ],
)
def test_damage_names_the_file_and_the_dotted_field(
    dotted: str, value: object, message: str
) -> None:
    document = json.loads(to_json(RESULT))
    *parents, field = dotted.split(".")
    inner = document[parents[0]] if parents else document
    # None takes the field away.
    inner.update({field: value}) if value is not None else inner.pop(field)
    wrong, named = json.dumps(document), {"source": "some/file.json"}
    refused = refusal(from_json, RowResult, wrong, **named, error=RecordError)
    assert refused.startswith("some/file.json: ")
    assert message in refused


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_truncated_file(share: float) -> None:
    text = to_json(RESULT)
    with pytest.raises(RecordError, match=r"f\.json: Invalid JSON"):
        from_json(RowResult, text[: int(len(text) * share)], source="f.json")


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_file(text: str) -> None:
    with pytest.raises(RecordError, match=r"^f\.json: the file is empty$"):
        from_json(RowResult, text, source="f.json")
    with pytest.raises(RecordError, match=r"^f\.json: the file is empty$"):
        parse_json(text, source="f.json")


def test_our_own_nan_is_a_bug_not_a_file() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        to_json(replace(MEASUREMENT, tok_s=float("nan")))

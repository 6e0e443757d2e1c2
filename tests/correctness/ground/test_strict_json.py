from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_perf.errors import RecordError
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import from_json, to_json

MEASUREMENT = Measurement(
    tok_s=12.5,
    bandwidth_gb_s=6.7,
    peak_memory_bytes=700_000_000,
    model_size_bytes=540_000_000,
    weights="synthetic",
    decode_tok_s=13.0,
    sample_ns=(10, 20),
    first_token_ns=(1, 2),
)
RESULT = RowResult(
    id="7b.none.bf16.eager",
    row=RowSpec(model="7B"),
    status=Status.MEASURED,
    measurement=MEASUREMENT,
)


def test_round_trip() -> None:
    assert from_json(RowResult, to_json(RESULT), source="f") == RESULT


def test_a_list_of_numbers_stands_on_one_line() -> None:
    assert '"sample_ns": [ 10, 20 ]' in to_json(RESULT)


@given(
    st.floats(min_value=1e-9, max_value=1e12),
    st.lists(st.integers(min_value=1, max_value=2**62), max_size=20),
)
def test_round_trip_of_any_figures(tok_s: float, samples: list[int]) -> None:
    measured = replace(MEASUREMENT, tok_s=tok_s, sample_ns=tuple(samples))
    assert from_json(Measurement, to_json(measured), source="f") == measured


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["measurement"].update(tok_s="fast"), "measurement.tok_s: "),
        (lambda d: d["measurement"].update(toks=1), "measurement.toks: unknown field"),
        (lambda d: d["row"].update(colour=1), "row.colour: unknown field"),
        (
            lambda d: d["measurement"].pop("tok_s"),
            "measurement.tok_s: the field is mis",
        ),
        (lambda d: d["measurement"].update(tok_s=float("nan")), "measurement.tok_s: "),
        (lambda d: d["measurement"].update(sample_ns=[1.5]), "sample_ns.0: "),
        (lambda d: d.update(status="DONE"), "status: Input should be 'MEASURED', "),
        (lambda d: d["row"].update(dtype="bf16"), "row: dtype: 'bf16' is not allowed"),
        (lambda d: d["row"].update(compile=1), "row.compile: "),
    ],
)
def test_damage_names_the_file_and_the_dotted_field(edit: object, message: str) -> None:
    document = json.loads(to_json(RESULT))
    edit(document)  # type: ignore[operator]
    with pytest.raises(RecordError) as caught:
        from_json(RowResult, json.dumps(document), source="some/file.json")
    assert str(caught.value).startswith("some/file.json: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file(share: float) -> None:
    text = to_json(RESULT)
    with pytest.raises(RecordError, match=r"f\.json: Invalid JSON"):
        from_json(RowResult, text[: int(len(text) * share)], source="f.json")


def test_our_own_nan_is_a_bug_not_a_file() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        to_json(replace(MEASUREMENT, tok_s=float("nan")))

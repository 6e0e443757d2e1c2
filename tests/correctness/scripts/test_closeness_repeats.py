"""The study of what moves a closeness, with figures made up."""

from dataclasses import replace

import pytest

from llama_perf.results.measurement import Closeness
from llama_perf.rows.schemes import Scheme
from scripts.studies import closeness_repeats
from scripts.studies.closeness_repeats import FOUND, changes, repeats
from tests.correctness.support.record_samples import CLOSENESS


def made_up(
    scheme: str,
    _dtype: str,
    factor: float = 1.0,
    _where: str = "",
    seed: int | None = None,
) -> Closeness:
    """int8dq loses 3 dB in its second repeat, a scale that is off 0.6 dB."""
    lost_db = 3.0 if scheme == "int8dq" and seed == 2 else 0.0
    lost_db += 0.6 if factor != 1 else 0.0
    return replace(CLOSENESS, db=CLOSENESS.db - lost_db)


def test_repeats_and_changes_are_judged_by_the_limits_of_their_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(closeness_repeats, "closeness", made_up)
    lines = {line[:2]: line[2:] for line in repeats(3)}
    moved = ("-3.00 dB", "+0.0%", "+0.0%", "+0.0%")
    assert lines["int8dq", "float32"] == ("12.00", "0.3000", *moved, "1 of 3")
    assert lines["fp6", "bfloat16"][-1] == "0 of 3"
    verdicts = {line[:3]: line[-1] for line in changes()}
    of_scales = "float32", "all scales 1 % off"
    assert verdicts["int8wo", *of_scales] == "WORSE"
    # It rounds as it runs.
    assert verdicts["int8dq", *of_scales] == "not found"


def test_its_schemes_exist() -> None:
    for change in FOUND:
        assert Scheme.parse(change.scheme)
        assert Scheme.parse(change.becomes or change.scheme)

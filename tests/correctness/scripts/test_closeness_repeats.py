"""The study of what moves a closeness, with figures made up."""

import math
from dataclasses import replace

import pytest

from llama_perf.gate.judgements import limits_of
from llama_perf.results.measurement import Closeness
from llama_perf.rows.schemes import Scheme
from llama_perf.rows.spec import RowSpec
from scripts.doc_tables.closeness import REDRAWN, Redraws
from scripts.studies import closeness_repeats
from scripts.studies.closeness_repeats import (
    CHANGES,
    FOUND,
    REPEATS,
    SCHEMES,
    changes,
    repeats,
)
from tests.correctness.support.record_samples import CLOSENESS


def made_up(
    scheme: str,
    _dtype: str,
    factor: float = 1.0,
    _where: str = "",
    seed: int | None = None,
) -> Closeness:
    """int8dq loses 3 dB in its second repeat, a scale that is off 1.6 dB."""
    lost_db = 3.0 if scheme == "int8dq" and seed == 2 else 0.0
    lost_db += 1.6 if factor != 1 else 0.0
    return replace(CLOSENESS, db=CLOSENESS.db - lost_db)


def test_repeats_and_changes_are_judged_by_the_limits_of_their_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(closeness_repeats, "closeness", made_up)
    lines = {line[:2]: line[2:] for line in repeats(3)}
    moved = ("-3.00 dB", "+0.0%", "+0.0%", "+0.0%")
    assert lines["int8dq", "float32"] == ("12.00", "0.3000", *moved, "1 of 3")
    assert lines["fp6", "bfloat16"][-1] == "0 of 3"
    verdicts = {line[:2]: line[-1] for line in changes()}
    assert verdicts["int8wo", "all scales 1 % off"] == "WORSE"
    # It rounds as it runs.
    assert verdicts["int8dq", "all scales 1 % off"] == "not found"


def test_its_schemes_exist_and_the_document_has_both_tables() -> None:
    for change in FOUND:
        assert Scheme.parse(change.scheme)
        assert Scheme.parse(change.becomes or change.scheme)
        assert f"| {change.words} " in CHANGES.read()
    assert all(f"| {scheme} " in REPEATS.read() for scheme in SCHEMES)


@pytest.mark.parametrize("drawn", [*REDRAWN.items()], ids=lambda one: "-".join(one[0]))
def test_a_limit_is_beyond_what_two_draws_of_the_same_codes_differ_by(
    drawn: tuple[tuple[str, ...], Redraws],
) -> None:
    (scheme, _), redraws = drawn
    row = RowSpec(model="SmolLM2-135M-Instruct", device="cpu", quantization=scheme)
    limits, means, deviations = limits_of(row), redraws.means, redraws.deviations
    # Of 3.7 deviations one draw in 10,000 is further off.
    apart = 3.7 * math.sqrt(2)
    assert limits["closeness_db"] > apart * deviations.signal_to_noise_db
    assert limits["closeness_kl"] > apart * deviations.kl_nats / means.kl_nats
    perplexity = deviations.perplexity_change / (1 + means.perplexity_change)
    assert limits["closeness_perplexity"] > apart * perplexity

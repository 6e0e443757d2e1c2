"""What a report says of figures that are not known, or that mean nothing is found."""

from dataclasses import replace

from llama_perf.gate.verdict import not_compared
from llama_perf.report.text import as_markdown, as_text
from llama_perf.results.measurement import ValueCheck
from tests.correctness.support.record_samples import (
    ENVIRONMENT,
    OTHER,
    measured,
    report_of,
)


def test_what_is_not_known_of_a_machine_is_no_none() -> None:
    bare = replace(ENVIRONMENT, torch=None, torchao=None, python=None, driver=None)
    text = as_text(report_of(measured(), environment=bare))
    assert "\nversions of its libraries: not known\n" in text
    assert "None" not in text
    versions = f"torch {ENVIRONMENT.torch}, torchao {ENVIRONMENT.torchao}"
    bare = replace(ENVIRONMENT, python=None)
    assert f"\n{versions}\n" in as_text(report_of(measured(), environment=bare))
    (change,) = bare.changes(ENVIRONMENT)
    assert change == f"python: unknown -> {ENVIRONMENT.python}"


def test_a_loss_that_no_run_finds_is_none_in_words() -> None:
    results = measured(), measured(OTHER)
    verdicts = tuple(
        replace(not_compared(result), minimum_detectable=share)
        for result, share in zip(results, (0.9999, 0.064), strict=True)
    )
    lines = as_markdown(report_of(*results, comparisons=verdicts)).splitlines()
    table = [[cell.strip() for cell in line.split("|")] for line in lines]
    headers, _, *rows = [cells for cells in table if len(cells) > 3]
    column = headers.index("found 9 in 10")
    assert [row[column] for row in rows] == ["none", "6.4%"]


def test_greedy_tokens_that_differ_within_the_error_are_said() -> None:
    check = ValueCheck(
        signal_to_noise_db=23,
        least_db=14,
        against="operators",
        tokens=9,
        ties=1,
        seconds=1,
    )
    text = as_text(report_of(measured(check=check)))
    assert ": at 1 of 9 positions the greedy token is another one than by the" in text

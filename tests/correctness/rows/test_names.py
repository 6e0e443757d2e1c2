"""A row's own name: shown in place of its id, chosen by it, and no part of the work."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf.errors import RecordError, UserError
from llama_perf.gate.diff import diff_of
from llama_perf.gate.speed_baseline import SpeedBaseline
from llama_perf.report import draw
from llama_perf.report.table import row_names
from llama_perf.results.recording import of_baseline
from llama_perf.results.run import Verdict
from llama_perf.rows import selection
from llama_perf.rows.limit_overrides import Limits
from llama_perf.run.worker_protocol import WorkerResult, WorkerTask
from llama_perf.strict_json import from_json, to_json, to_line
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.record_samples import (
    CPU_ROW,
    ENVIRONMENT,
    INT8_CPU,
    OTHER,
    baseline_of,
    baseline_of_processes,
    compare,
    measured,
    report_of,
)

NAMED = replace(CPU_ROW, name="nightly")
ROWS = """
[defaults]
model = "tiny"
device = "cpu"

[[row]]
name = "plain"

[[row]]
name = "Plain-8"
quantization = "int8wo"

[[row]]
quantization = "fp6"
"""


def rows_file(folder: Path, text: str = ROWS) -> Path:
    path = folder / "rows.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_glob_matches_a_name_or_an_id(tmp_path: Path) -> None:
    rows = selection.load_file(rows_file(tmp_path))
    assert [row.name for row in rows] == ["plain", "Plain-8", None]

    def named(*globs: str) -> list[str | None]:
        return [row.name for row in selection.select(rows, globs)]

    assert named("plain") == ["plain"]
    assert named("*lain*") == ["plain", "Plain-8"]
    assert named("*fp6*") == [None]
    assert named("*int8wo*", "plain") == ["plain", "Plain-8"]
    with pytest.raises(UserError, match="no row matches 'nightly'"):
        selection.select(rows, ["nightly"])


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('"Plain-8"', '"plain"', "rows 1 and 2 have one name, 'plain'"),
        ('"plain"', '"two words"', "row 1: name: 'two words' is not allowed; allowed"),
        ('"plain"', "8", "row 1: name: 8 is not allowed; allowed: text"),
        ('"Plain-8"', '"tiny.fp6.bf16.cpu.eager"', "rows 2 and 3 have one id, 'tiny.f"),
        ("[defaults]", '[defaults]\nname = "all"', "rows 2 and 3 have one name, 'all'"),
    ],
)
def test_a_name_that_is_no_rows_own_is_refused(
    tmp_path: Path, before: str, after: str, words: str
) -> None:
    text = ROWS.replace(before, after)
    if before == "[defaults]":
        text = text.replace('name = "Plain-8"\n', "")
    path = rows_file(tmp_path, text)
    with pytest.raises(RecordError) as caught:
        selection.load_file(path)
    assert str(caught.value).startswith(f"{path}: {words}")


def test_the_name_is_in_the_table_and_the_id_in_reasons_and_results() -> None:
    baseline = baseline_of(measured(CPU_ROW), measured(OTHER))
    results = (measured(NAMED, tok_s=60.0), measured(OTHER))
    verdicts = tuple(compare(result, baseline) for result in results)
    report = report_of(*results, comparisons=verdicts)
    for shape in ("text", "markdown"):
        text = draw(report, shape)
        lines = [line.strip("| ") for line in text.splitlines()]
        assert [line.split()[0] for line in lines if " 50.0 " in line] == [
            *("nightly", "compile")
        ]
        assert f"row nightly: {CPU_ROW.id}" in text
    assert f"\nSLOWER {CPU_ROW.id}: tok/s 100.00 -> 60.00" in draw(report, "text")
    document = json.loads(draw(report, "json"))
    assert document["results"][0]["id"] == CPU_ROW.id
    assert document["results"][0]["row"]["name"] == "nightly"
    header, first, second = draw(report, "csv").splitlines()
    assert header.startswith("id,name,status")
    assert first.startswith(f"{CPU_ROW.id},nightly,MEASURED")
    assert second.startswith(f"{OTHER.id},,MEASURED")


def test_two_rows_are_never_called_the_same() -> None:
    # The other row is "compile" beside this one.
    named = replace(CPU_ROW, name="compile")
    assert row_names([CPU_ROW, OTHER])[0] == ["eager", "compile"]
    assert row_names([named, OTHER]) == (["compile", OTHER.id], "")
    assert row_names([named]) == (["compile"], "")


def test_a_row_that_got_another_name_is_the_same_row() -> None:
    then = {row: [99.0, 100.0, 101.0, 99.5, 100.5] for row in (NAMED, INT8_CPU)}
    stored = baseline_of_processes(then)
    assert from_json(type(stored), to_json(stored), source="baseline") == stored
    assert stored.rows[0].id == CPU_ROW.id
    for name in (None, "nightly", "weekly"):
        row = replace(CPU_ROW, name=name)
        assert compare(measured(row), stored).verdict is Verdict.SAME
        again = baseline_of_processes(
            dict(zip((row, INT8_CPU), then.values(), strict=True))
        )
        pair = [of_baseline(one, source="it") for one in (stored, again)]
        assert diff_of(pair).changed().rows == ()


def test_a_name_does_not_choose_the_row_that_a_ratio_is_of() -> None:
    plain = replace(CPU_ROW, compile=True, max_new_tokens=9)
    near = replace(plain, quantization="int8wo")
    for name in (None, "nightly"):
        stored = baseline_of(
            measured(replace(CPU_ROW, compile=True)),
            measured(replace(plain, name=name)),
            measured(near),
        )
        chosen = SpeedBaseline(stored).unquantized[near.id]
        assert chosen is not None
        assert chosen.id == plain.id


def test_a_worker_is_told_neither_name_nor_limits_and_its_result_has_them() -> None:
    # An older revision refuses a limit that it does not know.
    limited = replace(NAMED, limits=Limits({"closeness_db": 3.0}))
    task = WorkerTask(row=limited, devices=("cpu",))
    sent = json.loads(to_line(task.to_send))
    assert not {"name", "limits"} & sent["row"].keys()
    received = from_json(WorkerTask, to_line(task.to_send), source="the task")
    assert received.row == CPU_ROW
    reply = WorkerResult(result=measured(received.row), environment=ENVIRONMENT)
    assert reply.of_row(task.row).result.row == limited


def test_an_older_worker_knows_every_field_of_a_row_that_it_knows() -> None:
    """A field that is added is None by default, and is then not sent."""
    task = WorkerTask(row=CPU_ROW, devices=("cpu",))
    assert json.loads(to_line(task.to_send))["row"].keys() == {
        *("model", "kernels", "attention", "dtype", "device", "compile", "capture"),
        *("fused", "compile_prefill", "kv_cache_quantization", "linear_causal_mask"),
        *("fill", "batch_size", "ragged", "prompt_length", "max_new_tokens"),
        *("num_samples", "top_k", "temperature"),
    }
    ours = replace(CPU_ROW, engine="llama-perf")
    assert ours == CPU_ROW
    assert (ours.id, ours.fingerprint) == (CPU_ROW.id, CPU_ROW.fingerprint)


def test_rows_are_listed_with_their_names(tmp_path: Path, cli: CommandLine) -> None:
    words = ("rows", "--rows", str(rows_file(tmp_path)))
    header, _, *lines, _ = cli(*words)[0].splitlines()
    assert header.split()[:2] == ["name", "id"]
    assert [line.split()[0] for line in lines] == ["plain", "Plain-8", "-"]
    objects = json.loads(cli(*words, "--json")[0])
    assert [row["name"] for row in objects] == ["plain", "Plain-8", None]
    out, _ = cli(*words, "--row", "plain")
    assert out.splitlines()[-1].startswith("1 row")

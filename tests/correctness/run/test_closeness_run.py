"""`llama-perf closeness`, `--closeness` of a run, and the same as tests of pytest."""

import csv
import json
import os
import re
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from llama_perf.errors import NotRunnable
from llama_perf.results import baselines
from llama_perf.results.closeness_report import (
    ClosenessReport,
    ClosenessResult,
    added,
    read_closeness,
)
from llama_perf.results.measurement import Closeness
from llama_perf.results.run import Status, Verdict
from llama_perf.rows.spec import RowSpec
from llama_perf.run import session, worker
from llama_perf.run.worker_protocol import WorkerReply, WorkerTask
from llama_perf.strict_json import from_json, to_line
from scripts.doc_schema import FOLDER
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, Project
from tests.correctness.support.record_samples import (
    ENVIRONMENT,
    INT8_CPU,
    RECORDED,
    measured,
    report_of,
)

pytest_plugins = ["pytester"]

CLOSENESS = Closeness(
    db=30.0,
    kl_nats=0.002,
    top1_share=0.95,
    perplexity=30.5,
    twin_perplexity=30.25,
    greedy_tokens=64,
    same_greedy_tokens=40,
    tokens=256,
    text="built-in 0123abcd",
    seconds=2.0,
)


Ends = list[Closeness | BaseException]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Ends:
    """What comparing a row ends with, one after another; the last again and again."""
    ends: Ends = [CLOSENESS]

    def compared(*_arguments: Any, **_options: Any) -> Closeness:
        end = ends.pop(0) if len(ends) > 1 else ends[0]
        if isinstance(end, BaseException):
            raise end
        return end

    monkeypatch.setattr(session, "measure_closeness", compared)
    return ends


def test_the_command_compares_what_is_quantized(project: Project) -> None:
    words = project.words("closeness", "--tokens", "32", "--results", "-")
    files = ("--report", "close.csv", "--report", "close.md")
    out, err = project.cli(*words, *files)
    table, last, _ = out.rsplit("\n", 2)
    assert re.search(
        r"^int8wo +\d\d\.\d( +[\d.e-]+){4} +\d+ of 64 +\d+  MEASURED$",
        table,
        re.MULTILINE,
    )
    assert f"\nNOT_RUN {FP6}: scheme fp6 is not built on " in table
    assert "\nleft out: 1 row with nothing quantized\n" in table
    assert "\n1 of 2 rows compared, 0 failed" in table
    assert re.search(
        r"^text: drawn [0-9a-f]{8}, 32 tokens, read by 1 row$", table, re.M
    )
    assert "left out: 1 row with nothing quantized\n" in err
    schema = json.loads((FOLDER / "closeness.json").read_text(encoding="utf-8"))
    jsonschema.validate(json.loads(last), schema)
    report = from_json(ClosenessReport, last, source="stdout")
    assert [result.id for result in report.results] == [INT8, FP6]
    compared = report.results[0].closeness
    assert compared is not None
    assert compared.tokens == 32
    assert report.results[0].weights == "pth:tiny"
    lines = list(csv.DictReader(StringIO((project.path / "close.csv").read_text())))
    assert [line["id"] for line in lines] == [INT8, FP6]
    assert float(lines[0]["db"]) == compared.db
    assert (lines[1]["db"], lines[1]["status"]) == ("", "NOT_RUN")
    assert (project.path / "close.md").read_text().startswith("### llama-perf closen")


def test_a_run_measures_it_beside_speed(project: Project, made_up: Ends) -> None:
    project.run("--closeness", passed=2, skipped=1)
    figures = {result.id: result.measurement for result in project.report().results}
    plain, quantized = figures[PLAIN], figures[INT8]
    assert plain is not None
    assert quantized is not None
    assert plain.closeness is None
    assert quantized.closeness == CLOSENESS
    # Speed is kept where there is no twin, and is not where comparing broke.
    made_up[:] = [NotRunnable("closeness: no twin"), RuntimeError("it broke")]
    out, err = project.cli(*project.run_words("--closeness", "--row", "*int8wo*"))
    assert "closeness: no twin\n" in err
    assert "1 run" in out
    out, _ = project.cli(*project.run_words("--closeness", "--row", "*int8wo*"), code=1)
    assert f"INVALID {INT8}: closeness: RuntimeError: it broke\n" in out


def test_a_baseline_is_recorded_with_it_once(project: Project, made_up: Ends) -> None:
    made_up[:] = [CLOSENESS, RuntimeError("compared in a second process")]
    project.cli(*project.words("baseline", "record", "--processes", "2", "--closeness"))
    (path,) = (project.path / "baselines").glob(f"*/{baselines.FILE_NAME}")
    rows = {row.id: row.measurement.closeness for row in baselines.read(path).rows}
    assert rows == {PLAIN: None, INT8: CLOSENESS}


def test_rows_are_tests_and_a_row_that_lost_closeness_fails(
    project: Project, made_up: Ends
) -> None:
    project.record(closeness=CLOSENESS)
    tests: Any = {"tests": "tests/correctness"}
    options = ("--compare", *project.baselines)
    shown = project.run(*options, **tests, passed=1, skipped=1).stdout.str()
    assert re.search(r"^int8wo .* SAME$", shown, re.MULTILINE)
    saved = read_closeness(project.path / ".llama-perf" / "closeness.json")
    assert [one.verdict for one in saved.comparisons] == [Verdict.SAME, Verdict.NOT_RUN]
    made_up[:] = [replace(CLOSENESS, db=27.0)]
    shown = project.run(*options, **tests, failed=1, skipped=1).stdout.str()
    assert re.search(rf"WORSE {INT8}: .*30\.00 -> 27\.00 \(-3\.00 dB", shown)
    # A row that was compared before does not vanish in silence.
    made_up[:] = [NotRunnable("closeness: no twin")]
    shown = project.run(*options, **tests, failed=1, skipped=1).stdout.str()
    assert f"NOT_RUN {INT8}: closeness: no twin" in shown
    # Without a comparison only what broke fails.
    made_up[:] = [replace(CLOSENESS, db=27.0)]
    project.run(**tests, passed=1, skipped=1)
    made_up[:] = [RuntimeError("it broke")]
    shown = project.run(**tests, failed=1, skipped=1).stdout.str()
    assert f"INVALID {INT8}: RuntimeError: it broke" in shown
    # The results of rows' speed are another file.
    assert not project.results.exists()


def test_damage_makes_a_row_worse(project: Project) -> None:
    words = project.words("closeness", "--row", "*int8wo*", "--tokens", "32")
    out, _ = project.cli(*words, "--results", "-")
    report = from_json(ClosenessReport, out.splitlines()[-1], source="stdout")
    project.record(closeness=report.results[0].closeness)
    project.cli(*words, "--compare")
    out, _ = project.cli(*words, "--compare", "--inject-damage", "*", code=1)
    assert f"\nWORSE {INT8}: closeness to the twin (dB) " in out


def test_it_is_added_to_the_results_of_a_run(project: Project, made_up: Ends) -> None:
    project.cli(*project.run_words())
    words = project.words("closeness", "--add-to", str(project.results))
    out, _ = project.cli(*words)
    assert f"\n1 of 1 row added to {project.results}\n" in out
    results = project.report().results
    figures = [result.measurement for result in results if result.measurement]
    assert [one.closeness for one in figures] == [None, CLOSENESS]
    shown, _ = project.cli("report", str(project.results))
    assert re.search(r"^int8wo\S* .*\b30\.0\b", shown, re.MULTILINE)
    torch = report_of().environment.torch
    project.edit(
        f'"torch": "{project.report().environment.torch}"',
        f'"torch": "{torch}"',
        project.results,
    )
    made_up[:] = [RuntimeError("it was compared first")]
    refused = project.cli.refusal(*words)
    assert refused.startswith(f"add-to: {project.results} is of another run: torch: ")


def test_only_the_same_row_of_the_same_weights_gets_it() -> None:
    speeds = report_of(measured(INT8_CPU), measured())
    result = ClosenessResult(
        id=INT8_CPU.id,
        row=INT8_CPU,
        status=Status.MEASURED,
        weights="synthetic",
        closeness=CLOSENESS,
    )

    def merged(**changes: Any) -> str:
        report = ClosenessReport(
            started=RECORDED,
            environment=ENVIRONMENT,
            text="built-in",
            results=(replace(result, **changes),),
        )
        return added(speeds, report)[1]

    assert merged() == "1 of 1 row added"
    assert merged(weights="gguf:other") == "0 of 1 row added"
    assert merged(row=replace(INT8_CPU, top_k=3)) == "0 of 1 row added"
    assert merged(id="another") == "0 of 1 row added"


def test_a_run_goes_on_where_it_stopped(project: Project, made_up: Ends) -> None:
    file = project.path / "close.json"
    words = project.words("closeness", "--results", str(file))
    made_up[:] = [CLOSENESS, RuntimeError("it was compared again")]
    project.cli(*words)
    _, err = project.cli(*words, "--resume")
    assert "taken over: 30.0 dB" in err
    assert read_closeness(file).results[0].closeness == CLOSENESS
    refused = project.cli.refusal(*words, "--resume", "--tokens", "64")
    assert refused == f"resume: {file} is of another run: tokens: None -> 64"


def test_an_interrupt_keeps_what_was_compared(project: Project, made_up: Ends) -> None:
    project.edit('quantization = "fp6"', 'quantization = "int8dq"')
    file = project.path / "close.json"
    made_up[:] = [CLOSENESS, KeyboardInterrupt()]
    words = project.words("closeness", "--results", str(file))
    _, err = project.cli(*words, code=130)
    assert "1 of 2 rows did not end; to continue:\n" in err
    assert [result.id for result in read_closeness(file).results] == [INT8]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--tokens", "31"), "31 is not allowed; allowed: a whole number, 32 to 8192"),
        (("--tokens", "1e3"), "'1e3' is not allowed; allowed: a whole number, 32 to"),
        (("--text", "none.txt"), "none.txt: cannot be read: No such file or directory"),
        (("--row", "*none*"), "of 1 selected row none is quantized, so there is nothi"),
        (("--report", "a.html"), "'a.html' is not allowed; allowed: a file that ends"),
        (("--add-to", "none/a.json"), "none/a.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line(
    project: Project, options: tuple[str, ...], problem: str
) -> None:
    refused = project.cli.refusal(*project.words("closeness"), *options)
    assert refused.startswith(options[0][2:])
    assert problem in refused


def test_closeness_is_added_to_results_only(project: Project) -> None:
    words = project.words("closeness", "--add-to", str(project.rows))
    refused = project.cli.refusal(*words)
    assert refused.startswith(f"{project.rows}: it is a file of rows: ")


def test_a_text_needs_what_reads_it(project: Project, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some words.\n", encoding="utf-8")
    for words in (project.words("run"), project.words("baseline", "record")):
        assert project.cli.refusal(*words, "--text", str(text)) == (
            "text: it belongs to --closeness: add that"
        )
    # The tiny model has no tokenizer.
    out, _ = project.cli(*project.words("closeness", "--text", str(text)))
    assert (
        f"NOT_RUN {INT8}: text: {text} cannot be read: this model has no tokenizer;"
        " without --text the ids are drawn\n"
    ) in out


def test_a_worker_compares_a_row_and_an_older_one_is_not_told_of_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = RowSpec(model="stories15M", device="cpu", dtype="float32")
    assert (
        not {"text", "tokens", "action"}
        & json.loads(to_line(WorkerTask(row=row, devices=("cpu",)))).keys()
    )
    (quantized,) = (row for row in all_rows(project) if row.id == INT8)
    checkpoints = str(project.path / "checkpoints")
    task = WorkerTask(
        row=quantized,
        devices=("cpu",),
        checkpoints=checkpoints,
        action="closeness",
        tokens=32,
    )
    monkeypatch.setattr(sys, "stdin", StringIO(f"{to_line(task)}\n"))
    replies, end = os.pipe()
    worker.main([str(end)])
    with os.fdopen(replies) as lines:
        *_, last = (from_json(WorkerReply, line, source="it") for line in lines)
    assert last.closeness is not None
    assert last.closeness.id == INT8
    assert last.closeness.closeness is not None
    assert last.closeness.closeness.tokens == 32


def all_rows(project: Project) -> list[RowSpec]:
    from llama_perf.rows.selection import load_file

    return load_file(project.rows)


def test_tests_of_rows_are_collected_only_where_rows_are_selected(
    request: pytest.FixtureRequest,
) -> None:
    class Config:
        def __init__(self, **asked: str) -> None:
            self.asked = asked

        def getoption(self, name: str) -> str | None:
            return self.asked.get(name)

    folder = Path(__file__).parents[1]
    (conftest,) = (
        plugin
        for plugin in request.config.pluginmanager.get_plugins()
        if getattr(plugin, "__file__", None) == str(folder / "conftest.py")
    )
    of_rows, other = folder / "closeness" / "test_rows.py", Path(__file__)
    assert of_rows.is_file()
    ignored = conftest.pytest_ignore_collect
    assert ignored(of_rows, Config())
    assert ignored(other, Config()) is None
    asked = Config(llama_perf_set="cpu")
    assert ignored(of_rows, asked) is None
    assert ignored(other, asked)
    assert ignored(folder, asked) is None

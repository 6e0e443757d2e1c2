"""A file that contradicts itself was edited or merged badly: wherever it is read."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_perf.errors import RecordError
from llama_perf.files import CHECKOUT
from llama_perf.results import baselines
from llama_perf.results.run import Verdict, read_report
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import to_json
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.errors import refusal
from tests.correctness.support.record_samples import (
    ALIKE,
    CPU_ROW,
    ENVIRONMENT,
    OTHER,
    Edit,
    baseline_of_processes,
    compare,
    edited,
    measured,
    report_of,
    stored_in,
)

KEY = ENVIRONMENT.device_key
STORED = baseline_of_processes({CPU_ROW: ALIKE, OTHER: [2 * rate for rate in ALIKE]})
REMEDY = "undo that, or record the row again"
LONGER = replace(CPU_ROW, max_new_tokens=300)
TINY = replace(CPU_ROW, model="Tiny")
# The edits of a baseline, and what each is told.
EDITS: list[tuple[Edit, str]] = [
    (
        {"rows.0.row.max_new_tokens": 300},
        f"rows.0.id: {CPU_ROW.id!r} is not the id of its row, {LONGER.id!r}: one of"
        f" them was edited; {REMEDY}",
    ),
    (
        # The id has the model in small letters.
        {"rows.0.row.model": "Tiny"},
        f"rows.0.fingerprint: {CPU_ROW.fingerprint!r} is not that of its row,"
        f" {TINY.fingerprint!r}: the row was edited under its fingerprint; {REMEDY}",
    ),
    (
        {"rows.0.id": "other"},
        f"rows.0.id: 'other' is not the id of its row, {CPU_ROW.id!r}: one of them was"
        f" edited; {REMEDY}",
    ),
    (
        {"rows.1.fingerprint": "0" * 16},
        f"rows.1.fingerprint: '{'0' * 16}' is not that of its row,"
        f" {OTHER.fingerprint!r}: the row was edited under its fingerprint; {REMEDY}",
    ),
    (
        {"environment.device_key": "cpu-b"},
        "environment.device_key: 'cpu-b' is not the folder's device, 'cpu-some-2c': the"
        " file belongs in cpu-b/",
    ),
    ({"rows": []}, "rows: there is none; a baseline has at least one"),
    (
        {"rows.0.measurement.tok_s": 200.0},
        "rows.0.measurement.tok_s: 200.0 does not follow from its samples: they have"
        " 100.0",
    ),
    (
        {"rows.0.measurement.sample_ns": [0, 5]},
        "rows.0.measurement.sample_ns: 0 ns; allowed: more than 0",
    ),
    (
        {"rows.0.processes.3.sample_ns": [10**400] * 2},
        "rows.0.processes.3.sample_ns: they are beyond any float",
    ),
    (
        {"rows.0.processes.3.sample_ns": []},
        "rows.0.processes: only some of them have sample_ns",
    ),
    (
        {"rows.0.processes.3.device_bandwidth_gb_s": None},
        "rows.0.processes: only some of them have device_bandwidth_gb_s",
    ),
    (
        {"rows.0.processes.3.sample_ns": [3 * 10**9]},
        "rows.0.processes.3.tok_s: 99.5 does not follow from its samples: they have"
        " 66.66666666666667",
    ),
    (
        {"rows.0.measurement": json.loads(to_json(STORED.rows[1].measurement))},
        "rows.0.measurement.tok_s: 200.0 is not the median of its processes, 100.0",
    ),
    (
        {"rows.0.measurement.peak_memory_bytes": 1},
        "rows.0.measurement: its figures are those of none of its processes",
    ),
    (
        {"rows.0.environment": json.loads(to_json(ENVIRONMENT)) | {"device_key": "b"}},
        "rows.0.environment.device_key: 'b' is not the file's, 'cpu-some-2c'",
    ),
    (
        {"rows.0.processes.0.peak_memory_bytes": -1},
        "rows.0.processes.0: peak_memory_bytes: -1 is not allowed; allowed: 0 or more",
    ),
    (
        {"rows.0.processes.0.device_bandwidth_gb_s": -1.0},
        "rows.0.processes.0: device_bandwidth_gb_s: -1.0 is not allowed; allowed: more"
        " than 0",
    ),
]


@pytest.mark.parametrize(("edit", "message"), EDITS)
def test_a_baseline_that_was_edited(
    tmp_path: Path, cli: CommandLine, edit: Edit, message: str
) -> None:
    path = edited(stored_in(tmp_path, STORED), edit)
    in_folder: list[Callable[[], object]] = [
        lambda: baselines.find(tmp_path, KEY),
        lambda: baselines.record_rows(
            tmp_path, environment=ENVIRONMENT, results=[measured()]
        ),
    ]
    for call in in_folder:
        refused = refusal(call, error=RecordError)
        assert refused.partition(" (and ")[0] == f"{path}: {message}"
    if "folder's device" not in message:
        anywhere: list[Callable[[], object]] = [
            lambda: baselines.read(path),
            lambda: baselines.parse(path.read_text(encoding="utf-8"), source="it"),
            lambda: baselines.from_section(json.loads(path.read_bytes()), source="it"),
        ]
        for call in anywhere:
            refused = refusal(call, error=RecordError)
            assert refused.partition(": ")[2].partition(" (and ")[0] == message
    folder = ["--baselines", str(tmp_path)]
    for action in ("show", "diff"):
        assert cli.refusal("baseline", action, *folder).startswith(f"{path}: {message}")
    out, _ = cli("baseline", "check", *folder, code=1)
    assert f"  {path}: {message}\n" in out


def test_check_tells_all_that_was_edited_at_once(
    tmp_path: Path, cli: CommandLine
) -> None:
    edit: Edit = {
        "rows.0.row.max_new_tokens": 300,
        "environment.device_key": "cpu-b",
        "rows.1.between_process_deviation": 0.5,
    }
    path = edited(stored_in(tmp_path, STORED), edit)
    out, _ = cli("baseline", "check", "--baselines", str(tmp_path), code=1)
    fields = [line.split(": ")[1] for line in out.splitlines()[1:]]
    assert fields[:3] == ["environment.device_key", "rows.0.id", "rows.0.fingerprint"]
    assert fields[-1] == "rows.1.between_process_deviation"
    # Five speeds and the one of the measurement do not follow from 300 tokens.
    assert len(fields) == 10
    message = refusal(baselines.read, path, error=RecordError)
    assert message.endswith(" (and 8 more)")


def test_the_baselines_of_this_checkout_are_read() -> None:
    folder = CHECKOUT / "baselines"
    keys = baselines.keys(folder)
    assert baselines.REFERENCE_KEY in keys
    assert len(keys) > 1
    for key in keys:
        path = baselines.path_of(folder, key)
        assert baselines.damage(path, device_key=key) == []
        assert baselines.find(folder, key) is not None


def test_rows_of_the_first_revisions_are_read_and_not_compared(
    tmp_path: Path, cli: CommandLine
) -> None:
    first = CPU_ROW.first_fingerprint
    assert first not in (None, CPU_ROW.fingerprint)
    path = stored_in(tmp_path, STORED)
    edited(path, {"rows.0.fingerprint": first, "rows.0.id": "an.earlier.name"})
    stored = baselines.read(path)
    assert stored.rows[0].fingerprint == first
    earlier = replace(measured(), id="an.earlier.name")
    comparison = compare(earlier, stored)
    assert (comparison.verdict, comparison.failed) == (Verdict.INCOMPARABLE, True)
    folder = ["--baselines", str(tmp_path)]
    assert "an.earlier.name: 5 processes" in cli("baseline", "show", *folder)[0]
    out, _ = cli("baseline", "check", *folder, code=1)
    assert "an.earlier.name: in no set" in out
    edited(path, {"rows.0.row.max_new_tokens": 300})
    assert "rows.0.id" in refusal(baselines.read, path, error=RecordError)
    # They knew no fused rows.
    assert replace(CPU_ROW, fused=True).first_fingerprint is None


def test_fingerprints_stay_as_they_are_stored() -> None:
    # A field that is added to a row must not change them where it is at its default:
    # baselines that were recorded before would be incomparable.
    assert CPU_ROW.fingerprint == "0b9dcab11e511019"
    # Numbers as Python has them, and as a file has them.
    whole = RowSpec(model="tiny", temperature=1)
    assert whole.fingerprint == RowSpec(model="tiny", temperature=1.0).fingerprint


REPORT = report_of(
    measured(), measured(OTHER), comparisons=(compare(measured(), STORED),)
)
BEFORE = "comparisons.0.before"
PROCESS: Any = json.loads(to_json(STORED.rows[0].samples[1]))
SAME: Any = {"verdict": "SAME", "reason": "", "failed": False}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            {"results.0.row.max_new_tokens": 300},
            f"results.0.id: {CPU_ROW.id!r} is not the id of its row, {LONGER.id!r}: one"
            f" of them was edited; {REMEDY} (and 7 more)",
        ),
        (
            {"results.1": json.loads(to_json(measured()))},
            f"results.1.id: {CPU_ROW.id!r} is there twice",
        ),
        (
            {"results.0.measurement.tok_s": 200.0},
            "results.0.measurement.tok_s: 200.0 does not follow from its samples: they"
            " have 100.0",
        ),
        (
            {"results.0.measurement": None},
            "results.0.status: MEASURED without a measurement",
        ),
        (
            {"results.0.status": "INVALID"},
            "results.0.status: INVALID with a measurement",
        ),
        (
            {f"{BEFORE}.measurement.tok_s": 200.0},
            f"{BEFORE}.measurement.tok_s: 200.0 does not follow from its samples: they"
            " have 100.0 (and 2 more)",
        ),
        (
            {f"{BEFORE}.processes.1.tok_s": 200.0},
            f"{BEFORE}.processes.1.tok_s: 200.0 does not follow from its samples: they"
            " have 100.0 (and 2 more)",
        ),
        (
            {f"{BEFORE}.processes.3.sample_ns": []},
            f"{BEFORE}.processes: only some of them have sample_ns",
        ),
        (
            {f"{BEFORE}.measurement.peak_memory_bytes": 1},
            f"{BEFORE}.measurement: its figures are those of none of its processes",
        ),
        (
            {f"{BEFORE}.processes": []},
            f"{BEFORE}.processes: there is none; allowed: at least 1",
        ),
        (
            {"comparisons.0.processes": [PROCESS | {"tok_s": 9.0}]},
            "comparisons.0.processes.0.tok_s: 9.0 does not follow from its samples:"
            " they have 100.0",
        ),
        (
            {"comparisons": [SAME | {"id": "gone"}]},
            "comparisons.0.id: 'gone' is in no result",
        ),
        (
            {"comparisons": [SAME | {"id": CPU_ROW.id}] * 2},
            f"comparisons.1.id: {CPU_ROW.id!r} is there twice",
        ),
        ({"selected": 1}, "selected: 1 rows, and 2 have results"),
        *(
            (
                {"environment.device_key": key},
                f"environment: device_key: {key!r} is not allowed; allowed: small"
                " letters, digits, '.' and '-'",
            )
            for key in ("../elsewhere", "..", "", "a/b")
        ),
    ],
)
def test_results_that_were_edited(
    tmp_path: Path, cli: CommandLine, edit: Edit, message: str
) -> None:
    path = tmp_path / "run.json"
    path.write_text(to_json(REPORT), encoding="utf-8")
    assert read_report(path) == REPORT
    edited(path, edit)
    record = ["baseline", "record", "--baselines", str(tmp_path), "--from", str(path)]
    for words in (["report", str(path)], ["report", str(path), str(path)], record):
        assert cli.refusal(*words) == f"{path}: {message}"
    assert not (tmp_path / KEY).exists()


def test_every_reader_of_stored_records_checks_them() -> None:
    """Baselines and results are read in `results` only."""
    readers = ("read_json(", "from_json(", "from_plain(")
    for room in ("llama_perf", "scripts"):
        for path in (CHECKOUT / room).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            unchecked = [
                name + kind
                for name in readers
                for kind in ("Report,", "Baseline,")
                if name + kind in text
            ]
            assert unchecked == [] or path.parent.name == "results", path

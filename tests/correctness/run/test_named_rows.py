"""A row's name in a run: no worker is told it, and the result has it."""

import re
import sys
from dataclasses import replace
from unittest.mock import Mock

import pytest

from llama_perf.results.run import Status
from llama_perf.run import worker
from llama_perf.run.options import RunRequest
from llama_perf.strict_json import to_line
from tests.correctness.support.plugin_project import FP6, INT8, PLAIN, Project
from tests.correctness.support.record_samples import CPU_ROW, unmeasured

pytest_plugins = ["pytester"]
NAMED = replace(CPU_ROW, name="nightly")


@pytest.mark.parametrize("breaks", [False, True])
def test_a_process_gets_a_row_without_its_name(
    monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    done = to_line({"result": unmeasured(Status.NOT_RUN, "so"), "environment": None})
    code = (
        "import json, os, sys\n"
        "row = json.loads(sys.stdin.readline())['row']\n"
        "if 'name' in row: sys.exit(f'unknown field {row}')\n"
        f"if {breaks}: sys.exit('it broke')\n"
        f"os.write(int(sys.argv[1]), b'{{\"done\": ' + {done.encode()!r} + b'}}\\n')\n"
    )
    command = Mock(
        side_effect=lambda *words: [sys.executable, "-c", code, str(words[-1])]
    )
    monkeypatch.setattr(worker, "worker_command", command)
    ended = worker.run_in_process(NAMED, options=RunRequest(), devices=["cpu"]).result
    assert (ended.id, ended.row) == (CPU_ROW.id, NAMED)
    assert str(ended.reason).endswith("it broke" if breaks else "so")


def test_rows_are_named_where_they_are_shown(project: Project) -> None:
    project.edit("[[row]]", '[[row]]\nname = "plain"')
    output, progress = project.cli(*project.run_words("--row", "plain"))
    speed, _ = project.report().results[0].summary.split()
    assert re.search(rf"^plain +{speed} ", output, re.MULTILINE)
    assert "[1/1] plain " in progress
    assert [result.id for result in project.report().results] == [PLAIN]
    # What was measured under another name is taken over under this one.
    project.edit('"plain"', '"simple"')
    output, progress = project.cli(*project.run_words("--resume"))
    assert re.search(r"^\[1/3\] simple +taken over: ", progress, re.MULTILINE)
    names = [result.row.name for result in project.report().results]
    assert names == ["simple", None, None]
    assert [result.id for result in project.report().results] == [PLAIN, INT8, FP6]

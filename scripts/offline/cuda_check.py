"""`scripts/cuda_check`: every check that needs a card, in one go and within a budget.

For a CUDA machine without network, with its own torch and Triton and a folder of wheels
for everything else. Each step runs in a process of its own and is stopped at its share
of the budget. It leaves what it had, and the next step runs all the same. Imports
nothing that such a machine may lack.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from scripts import ROOT
from scripts.offline.machine import machine_parser, run_script
from scripts.offline.steps import Step, StepRunner

_REHEARSAL_ROWS = """\
[defaults]
model = "stories15M"
device = "cpu"
dtype = "float32"
max_new_tokens = 4
num_samples = 2

[[row]]

[[row]]
quantization = "int8wo"
kernels = "torchao"
"""
_OUTPUTS = ("machine.json", "products.jsonl", "results.json", "results.md")
_LOGS = ("machine", "products", "rows", "rows-rest", "doctor")
# Seconds. The rows leave this much of the budget to the steps after them.
_KEEP_BACK_S = 45.0
_DOCTOR_S = 20.0
_FUSED_TESTS = {"step": "llama/test_decode_step.py", "fused": "llama/test_fused.py"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run all steps; returns 0 if all went well, 1 if one did not, 2 without a card."""
    arguments = machine_parser(
        "cuda_check",
        "Run every check that needs a card, the most telling ones first:"
        " the machine and its ceiling, the fused step's tests, the rows of the set"
        " cuda-check, products by themselves, the other tests, and a baseline.",
        budget_s=480,
    ).parse_args(argv)
    then = f"the results so far are in {arguments.out}"
    return run_script("cuda_check", arguments, partial(_check, arguments), then=then)


def _check(arguments: argparse.Namespace, runner: StepRunner, scratch: Path) -> None:
    out, rehearse = runner.out, arguments.rehearse
    for name in (*_OUTPUTS, *(f"{name}.txt" for name in _LOGS)):
        # An earlier check's file must not pass for one of this check.
        (out / name).unlink(missing_ok=True)
    # A machine with a card has cores for one part a scheme.
    parts = 2 if rehearse else max((os.cpu_count() or 1) // 2, 1)
    rows = row_options("cuda-check", scratch, rehearse=rehearse)
    product = ["stories15M", "cpu", "eager"]
    others = ["cuda/test_cuda.py"]
    if not rehearse:
        product = ["Llama-2-7b-chat-hf", "cuda", "fused"]
        folder = ROOT / "tests" / "correctness"
        names = [str(path.relative_to(folder)) for path in folder.rglob("test_*.py")]
        others = sorted(set(names) - set(_FUSED_TESTS.values()))

    machine = _module("scripts.offline.describe_machine", out / "machine.json")
    runner.run(Step("machine", machine, limit_s=60))
    fused: list[Step] = []
    for label, file in _FUSED_TESTS.items():
        fused += _tests(out, label, [file], parts=parts, limit_s=110)
    runner.run_together(fused)
    # The first rows have a process each. The rest share one: starting a process takes
    # as long as measuring three rows.
    _measure(runner, "rows", [*rows, "--isolate", "row"], limit_s=150)
    products = _module(
        "scripts.studies.product_times", *product, out / "products.jsonl"
    )
    runner.run(Step("products", products, limit_s=80, keep_back_s=_KEEP_BACK_S))
    _measure(runner, "rows-rest", [*rows, "--resume"], limit_s=75)
    record_baseline(runner, scratch, limit_s=30)
    runner.run_together(
        _tests(out, "others", others, parts=2 * parts, limit_s=math.inf)
    )
    runner.run(Step("doctor", llama_perf("doctor"), limit_s=4 * _DOCTOR_S))


def _module(name: str, *words: str | Path) -> list[str]:
    return [sys.executable, "-m", name, *map(str, words)]


def llama_perf(*words: str | Path) -> list[str]:
    """A command of this checkout."""
    return _module("llama_perf", *words)


def _tests(
    out: Path, label: str, files: Sequence[str], *, parts: int, limit_s: float
) -> list[Step]:
    """Run the tests of `files` that need a card, in parts for processes side by side.

    On the CPU each of them says that it needs a card.
    """
    words = [f"tests/correctness/{name}" for name in files]
    words += ["-m", "cuda", "--slow", "-rfEs", "-q", "-p", "no:cacheprovider"]
    words += ["--continue-on-collection-errors"]
    steps = []
    for part in range(1, parts + 1):
        name = f"tests-{label}-{part}-of-{parts}"
        options = [f"--part={part}/{parts}", f"--junit-xml={out / name}.xml"]
        command = _module("pytest", *words, *options)
        steps.append(Step(name, command, limit_s, keep_back_s=_DOCTOR_S, shown=5))
    return steps


def row_options(set_name: str, scratch: Path, *, rehearse: bool) -> list[str]:
    """The options of `llama-perf run` for a set, or for the rehearsal's tiny rows."""
    if not rehearse:
        return ["--set", set_name]
    file = scratch / "rehearsal.toml"
    file.write_text(_REHEARSAL_ROWS, encoding="utf-8")
    return ["--rows", str(file)]


def _measure(
    runner: StepRunner, name: str, options: Sequence[str], *, limit_s: float
) -> None:
    """Measure rows and draw those that were measured, however their run ended."""
    results = runner.out / "results.json"
    budget = ["--time-budget", f"{limit_s:.0f}"]
    command = llama_perf("run", *options, "--results", results, *budget)
    # The row that is being measured when its time is over comes to its end.
    runner.run(Step(name, command, 1.25 * limit_s, keep_back_s=_KEEP_BACK_S))
    if results.exists():
        draw(runner, "results.md", [results], limit_s=30, keep_back_s=_DOCTOR_S)


def draw(
    runner: StepRunner,
    name: str,
    results: Sequence[Path],
    *,
    limit_s: float,
    keep_back_s: float = 0.0,
) -> None:
    """Write the report of one or several files of results, as the file `name`."""
    output = "json" if name.endswith("json") else "markdown"
    command = llama_perf("report", *results, "--format", output)
    runner.run(Step(name, command, limit_s, keep_back_s=keep_back_s, shown=0))


def record_baseline(runner: StepRunner, scratch: Path, *, limit_s: float) -> None:
    """Record the baseline of this card from the rows that were measured."""
    measured = scratch / "measured.json"
    if left_out := without_invalid(runner.out / "results.json", measured):
        print(f"not recorded, since INVALID: {', '.join(left_out)}", flush=True)
    baselines = runner.out / "baselines"
    record = ("baseline", "record", "--from", measured, "--baselines", baselines)
    runner.run(Step("baseline", llama_perf(*record), limit_s, shown=5))


def without_invalid(results: Path, target: Path) -> list[str]:
    """Copy a run's results without INVALID rows to `target`; returns the ids left out.

    A baseline is recorded only from a run without INVALID rows. Here the step of the
    rows has failed for them already, and the other rows' figures are wanted.
    """
    try:
        report = json.loads(results.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    invalid = [row["id"] for row in report["results"] if row["status"] == "INVALID"]
    for part in ("results", "comparisons"):
        report[part] = [row for row in report[part] if row["id"] not in invalid]
    # A row that is left out is not missing.
    report["selected"] = report.get("selected", 0) - len(invalid)
    target.write_text(json.dumps(report), encoding="utf-8")
    return invalid

"""`scripts/cuda_check`: every check that needs a card, in one go and within a budget.

For a CUDA machine without network, with its own torch and Triton and a folder of wheels
for everything else. Each step runs in a process of its own and is stopped at its share
of the budget. It leaves what it had, and the next step runs all the same. Imports
nothing that such a machine may lack.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from scripts.offline.kernel_archive import report_compiled, unpack_kernels
from scripts.offline.options import ROOT, add_machine_options, refuse, wheels_problem
from scripts.offline.steps import Step, StepRunner, until_interrupted
from scripts.offline.wheels import install_wheels

REHEARSAL = "A rehearsal on the CPU with a tiny model: no figure here is a card's."
_PROBE = """
import sys
try:
    import torch
except ImportError as error:
    advice = "use a Python that has torch: .venv/bin/python after `make setup`"
    sys.exit(f"{error}; {advice}")
if sys.argv[1] == "card" and not torch.cuda.is_available():
    advice = "--rehearse runs the steps on the CPU"
    sys.exit(f"no CUDA device: torch {torch.__version__}; {advice}")
"""
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
_OUTPUTS = (
    "summary.txt",
    "machine.json",
    "products.jsonl",
    "rows.txt",
    "rows-rest.txt",
    "results.json",
    "results.md",
    "doctor.txt",
)
_MODEL = "Llama-2-7b-chat-hf"
# Seconds. The rows leave this much of the budget to the steps after them.
_KEEP_BACK_S = 45.0
_PROBE_S = 120.0
_MACHINE_S = 60.0
_FUSED_S = 110.0
_ROWS_S = 150.0
_PRODUCTS_S = 80.0
_REST_S = 75.0
_RECORD_S = 30.0
_DOCTOR_S = 20.0
# A rehearsal's parts. A machine with a card has cores for one part a scheme.
_FEW_PARTS = 2
_FUSED_TESTS = {"step": "llama/test_decode_step.py", "fused": "llama/test_fused.py"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run all steps; returns 0 if all went well, 1 if one did not, 2 without a card."""
    arguments = _parser().parse_args(argv)
    return until_interrupted(
        lambda: _check(arguments),
        name="cuda_check",
        then=f"the results so far are in {arguments.out}",
    )


def _check(arguments: argparse.Namespace) -> int:
    if (problem := wheels_problem(arguments)) is not None:
        return refuse("cuda_check", problem)
    out: Path = arguments.out.absolute()
    runner = StepRunner(root=ROOT, out=out, budget_s=arguments.budget)
    if (problem := machine_problem(runner, rehearse=arguments.rehearse)) is not None:
        return refuse("cuda_check", problem)
    out.mkdir(parents=True, exist_ok=True)
    for name in _OUTPUTS:
        # An earlier check's file must not pass for one of this check.
        (out / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="cuda-check-") as scratch:
        return _run(runner, arguments, Path(scratch))


def machine_problem(runner: StepRunner, *, rehearse: bool) -> str | None:
    """Why this Python or this machine's card cannot be used, None if they can."""
    needed = "torch" if rehearse else "card"
    return runner.ask([sys.executable, "-c", _PROBE, needed], limit_s=_PROBE_S)


def announce_rehearsal(runner: StepRunner) -> None:
    """Say at the top of every log, and here, that no figure is a card's."""
    runner.heading = REHEARSAL
    print(REHEARSAL, flush=True)


def _run(runner: StepRunner, arguments: argparse.Namespace, scratch: Path) -> int:
    out, rehearse = runner.out, arguments.rehearse
    if rehearse:
        announce_rehearsal(runner)
    install_wheels(runner, arguments.wheels, scratch / "site")
    unpacked = unpack_kernels(runner, arguments.wheels)
    parts = _FEW_PARTS if rehearse else max((os.cpu_count() or 1) // 2, 1)
    rows = row_options("cuda-check", scratch, rehearse=rehearse)
    runner.run(machine_step(out))
    runner.run_together(
        [
            step
            for label, file in _FUSED_TESTS.items()
            for step in tests_steps(out, label, [file], parts=parts, limit_s=_FUSED_S)
        ]
    )
    runner.run(rows_step(out, "rows", rows, limit_s=_ROWS_S))
    _draw_table(runner)
    runner.run(products_step(out, rehearse=rehearse))
    runner.run(rows_step(out, "rows-rest", rows, limit_s=_REST_S))
    _draw_table(runner)
    record_baseline(runner, scratch, limit_s=_RECORD_S)
    others = ["cuda/test_cuda.py"] if rehearse else _other_tests()
    runner.run_together(
        tests_steps(out, "others", others, parts=2 * parts, limit_s=math.inf)
    )
    runner.run(doctor_step())
    report_compiled(runner, unpacked)
    if rehearse:
        _head(out / "results.md")
    print(f"\n{runner.summary()}\nresults: {out}")
    if rehearse:
        print(REHEARSAL)
    return 0 if runner.all_ok else 1


def llama_perf(*arguments: str) -> list[str]:
    """A command of this checkout."""
    return [sys.executable, "-m", "llama_perf", *arguments]


def machine_step(out: Path) -> Step:
    """Describe the machine and measure the ceiling of this run."""
    command = [sys.executable, "-m", "scripts.offline.describe_machine"]
    return Step(
        name="machine",
        command=[*command, str(out / "machine.json")],
        limit_s=_MACHINE_S,
        log="machine.txt",
        shown=30,
    )


def tests_steps(
    out: Path, label: str, files: Sequence[str], *, parts: int, limit_s: float
) -> list[Step]:
    """Run the tests of `files` that need a card, in parts for processes side by side.

    On the CPU each of them says that it needs a card.
    """
    paths = [f"tests/correctness/{name}" for name in files]
    steps = []
    for part in range(1, parts + 1):
        name = f"tests-{label}-{part}-of-{parts}"
        command = [sys.executable, "-m", "pytest", *paths, "-m", "cuda", "-rfEs", "-q"]
        command += ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
        command += [f"--part={part}/{parts}", f"--junit-xml={out / name}.xml"]
        steps.append(
            Step(
                name=name,
                command=command,
                limit_s=limit_s,
                log=f"{name}.txt",
                keep_back_s=_DOCTOR_S,
                shown=5,
            )
        )
    return steps


def _other_tests() -> list[str]:
    """The files of tests except those that ran before."""
    folder = ROOT / "tests" / "correctness"
    paths = sorted(folder.rglob("test_*.py"))
    names = [str(path.relative_to(folder)) for path in paths]
    return [name for name in names if name not in _FUSED_TESTS.values()]


def products_step(out: Path, *, rehearse: bool) -> Step:
    """Time each format's products by themselves: five shapes of six formats."""
    words = ["stories15M", "cpu", "eager"] if rehearse else [_MODEL, "cuda", "fused"]
    command = [sys.executable, "-m", "scripts.studies.product_times", *words]
    return Step(
        name="products",
        command=[*command, str(out / "products.jsonl")],
        limit_s=_PRODUCTS_S,
        log="products.txt",
        keep_back_s=_KEEP_BACK_S,
        shown=40,
    )


def doctor_step() -> Step:
    """List what the machine can run."""
    return Step(
        name="doctor",
        command=llama_perf("doctor"),
        limit_s=_DOCTOR_S * 4,
        log="doctor.txt",
        shown=30,
    )


def row_options(set_name: str, scratch: Path, *, rehearse: bool) -> list[str]:
    """The options of `llama-perf run` for a set, or for the rehearsal's tiny rows."""
    if not rehearse:
        return ["--set", set_name]
    file = scratch / "rehearsal.toml"
    file.write_text(_REHEARSAL_ROWS, encoding="utf-8")
    return ["--rows", str(file)]


def rows_step(out: Path, name: str, options: Sequence[str], *, limit_s: float) -> Step:
    """Measure the rows that are not measured yet, within `limit_s`.

    The first rows have a process each. The rest share one: starting a process takes as
    long as measuring three rows.
    """
    results = out / "results.json"
    command = llama_perf("run", *options, "--results", str(results))
    command += ["--time-budget", f"{limit_s:.0f}"]
    command += ["--resume"] if name == "rows-rest" else ["--isolate", "row"]
    return Step(
        name=name,
        command=command,
        # The row that is being measured when its time is over comes to its end.
        limit_s=limit_s * 1.25,
        log=f"{name}.txt",
        keep_back_s=_KEEP_BACK_S,
        shown=40,
    )


def record_baseline(runner: StepRunner, scratch: Path, *, limit_s: float) -> None:
    """Record the baseline of this card from the rows that were measured."""
    measured = scratch / "measured.json"
    if left_out := without_invalid(runner.out / "results.json", measured):
        print(f"not recorded, since INVALID: {', '.join(left_out)}", flush=True)
    options = ["--from", str(measured), "--baselines", str(runner.out / "baselines")]
    runner.run(
        Step(
            name="baseline",
            command=llama_perf("baseline", "record", *options),
            limit_s=limit_s,
            shown=5,
        )
    )


def _draw_table(runner: StepRunner) -> None:
    """Draw the rows that were measured, however their run ended."""
    results = runner.out / "results.json"
    if not results.exists():
        return
    runner.run(
        Step(
            name="table",
            command=llama_perf("report", str(results), "--format", "markdown"),
            limit_s=_RECORD_S,
            log="results.md",
            keep_back_s=_DOCTOR_S,
        )
    )


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


def _head(path: Path) -> None:
    with suppress(FileNotFoundError):
        text = path.read_text(encoding="utf-8")
        if REHEARSAL not in text:
            path.write_text(f"{REHEARSAL}\n\n{text}", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cuda_check",
        description="Run every check that needs a card, the most telling ones first:"
        " the machine and its ceiling, the fused step's tests, the rows of the set"
        " cuda-check, products by themselves, the other tests, and a baseline.",
    )
    add_machine_options(parser, out="cuda-check-results", budget_s=480)
    return parser

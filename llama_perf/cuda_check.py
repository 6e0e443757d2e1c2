"""`scripts/cuda_check`: every check that needs a card, in one go and within a budget.

For a CUDA machine without network, with its own torch and Triton and a folder of
wheels for the rest. Each step runs in a process of its own, is stopped at its share
of the budget, and leaves what it had; the next one runs all the same. Imports
nothing that such a machine may lack.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from llama_perf.cuda_steps import Runner, Step, Told

ROOT = Path(__file__).resolve().parents[1]
REHEARSAL = "A rehearsal on the CPU with a tiny model: no figure here is a card's."
_PROBE = (
    "import sys, torch\n"
    "if torch.cuda.is_available(): sys.exit(0)\n"
    "print(f'no CUDA device: torch {torch.__version__}', file=sys.stderr)\n"
    "sys.exit(3)"
)
REHEARSAL_ROWS = """\
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
    "doctor.txt",
    "tests.txt",
    "tests.xml",
    "rows.txt",
    "results.json",
    "results.md",
)
# Seconds. What the steps after the rows need is kept back from them.
_KEPT_BACK_S = 30.0
_PROBE_S = 120.0
_DOCTOR_S = 75.0
_TESTS_S = 170.0
_RECORD_S = 30.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run all steps; 0 where all went well, 1 where one did not, 2 without a card."""
    arguments = _parser().parse_args(argv)
    if (problem := no_wheels(arguments)) is not None:
        return _refuse(problem)
    out: Path = arguments.out.absolute()
    runner = Runner(root=ROOT, out=out, budget_s=arguments.budget)
    if not arguments.rehearse and (problem := no_card(runner)) is not None:
        return _refuse(problem)
    out.mkdir(parents=True, exist_ok=True)
    for name in _OUTPUTS:
        # An earlier check's file must not pass for one of this check.
        (out / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="cuda-check-") as scratch:
        return _run(runner, arguments, Path(scratch))


def no_wheels(arguments: argparse.Namespace) -> str | None:
    """Why `--wheels` cannot be used, None where it can."""
    if arguments.wheels is None or arguments.wheels.is_dir():
        return None
    return f"wheels: {str(arguments.wheels)!r} is no folder"


def no_card(runner: Runner) -> str | None:
    """Why this machine's card cannot be used, None where it can."""
    problem = runner.ask([sys.executable, "-c", _PROBE], limit_s=_PROBE_S)
    return problem and f"{problem}; --rehearse runs the steps on the CPU"


def _refuse(reason: str) -> int:
    print(f"cuda_check: error: {reason}", file=sys.stderr)
    return 2


def _run(runner: Runner, arguments: argparse.Namespace, scratch: Path) -> int:
    out = runner.out
    if arguments.rehearse:
        runner.heading = REHEARSAL
        print(REHEARSAL, flush=True)
    install(runner, arguments.wheels, scratch / "site")
    runner.run(doctor_step())
    runner.run(tests_step(out, rehearse=arguments.rehearse))
    runner.run(rows_step(out, _row_options(scratch, rehearse=arguments.rehearse)))
    _draw_partial(runner)
    if left_out := without_invalid(out / "results.json", scratch / "measured.json"):
        print(f"not recorded, since INVALID: {', '.join(left_out)}", flush=True)
    runner.run(record_step(scratch / "measured.json", out / "baselines"))
    if arguments.rehearse:
        _head(out / "results.md")
    print(f"\n{runner.summary()}\nresults: {out}")
    if arguments.rehearse:
        print(REHEARSAL)
    return 0 if runner.all_ok else 1


def install(runner: Runner, folder: Path | None, site: Path) -> None:
    """Take from `folder` what this Python lacks, and nothing that it has.

    Without one from the checkout's wheelhouse, if it has one.
    """
    if folder is None and (ROOT / "wheelhouse").is_dir():
        folder = ROOT / "wheelhouse"
    if folder is None:
        runner.note("wheels", Told.OK, "no folder of wheels; what is installed is used")
        return
    try:
        wheels, missing = _selection(folder)
    except ImportError as error:
        runner.note("wheels", Told.FAILED, f"{error}; is packaging in {folder}?")
        return
    except LookupError as error:
        runner.note("wheels", Told.FAILED, str(error))
        return
    names = ", ".join(path.name.split("-")[0] for path in wheels) or "none"
    print(f"wheels this Python lacks: {names}", flush=True)
    if wheels:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index"]
        command += ["--no-deps", "--no-compile", "--no-cache-dir"]
        command += ["--disable-pip-version-check", "--root-user-action=ignore"]
        command += ["--target", str(site), *map(str, wheels)]
        runner.run(Step(name="wheels", command=command, limit_s=_RECORD_S * 4))
        runner.add_to_path(site)
    else:
        runner.note("wheels", Told.OK, "all is installed")
    if missing:
        runner.note("requirements", Told.FAILED, "; ".join(missing))


def _selection(folder: Path) -> tuple[list[Path], list[str]]:
    before = list(sys.path)
    # A wheel of plain Python can be imported as it is. Only while it is needed: what
    # stands on the path counts as installed.
    sys.path += [str(path) for path in folder.glob("packaging-*.whl")]
    try:
        wheels = importlib.import_module("llama_perf.wheels")
    finally:
        sys.path[:] = before
    lacking, missing = wheels.missing_here(ROOT / "pyproject.toml", folder)
    return [wheel.path for wheel in lacking], missing


def llama_perf(*arguments: str) -> list[str]:
    """A command of this checkout."""
    return [sys.executable, "-m", "llama_perf", *arguments]


def doctor_step() -> Step:
    """What the machine can run."""
    return Step(
        name="doctor",
        command=llama_perf("doctor"),
        limit_s=_DOCTOR_S,
        log="doctor.txt",
        shown=30,
    )


def tests_step(out: Path, *, rehearse: bool) -> Step:
    """The tests that need a card; on the CPU they say that they need one."""
    where = "tests/correctness/test_cuda.py" if rehearse else "tests/correctness"
    command = [sys.executable, "-m", "pytest", where, "-m", "cuda", "-rfEs"]
    command += ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
    command += [f"--junit-xml={out / 'tests.xml'}"]
    return Step(
        name="tests", command=command, limit_s=_TESTS_S, log="tests.txt", shown=40
    )


def _row_options(scratch: Path, *, rehearse: bool) -> list[str]:
    if not rehearse:
        return ["--set", "cuda-check"]
    file = scratch / "rehearsal.toml"
    file.write_text(REHEARSAL_ROWS, encoding="utf-8")
    return ["--rows", str(file)]


def rows_step(out: Path, options: Sequence[str]) -> Step:
    """The rows, with all the time that is left to them."""
    files = ["--json", str(out / "results.json"), "--markdown", str(out / "results.md")]
    return Step(
        name="rows",
        command=llama_perf("run", *options, *files),
        limit_s=float("inf"),
        log="rows.txt",
        keep_back_s=_KEPT_BACK_S,
        shown=40,
    )


def record_step(results: Path, baselines: Path) -> Step:
    """The baseline of this card, from the rows that were measured."""
    options = ["--from", str(results), "--baselines", str(baselines)]
    return Step(
        name="baseline",
        command=llama_perf("baseline", "record", *options),
        limit_s=_RECORD_S,
        shown=5,
    )


def _draw_partial(runner: Runner) -> None:
    """Draw the rows that were done where the run of them did not end by itself."""
    results, drawn = runner.out / "results.json", runner.out / "results.md"
    if drawn.exists() or not results.exists():
        return
    options = [str(results), "--format", "markdown"]
    runner.run(
        Step(
            name="partial results",
            command=llama_perf("report", *options),
            limit_s=_RECORD_S,
            log="results.md",
            keep_back_s=_KEPT_BACK_S / 2,
        )
    )


def without_invalid(results: Path, target: Path) -> list[str]:
    """Copy a run's results but for INVALID rows to `target`; the ids left out.

    A baseline is recorded from a run without INVALID rows alone. Here the step
    of the rows has failed for them already, and the others' figures are wanted.
    """
    try:
        report = json.loads(results.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    invalid = [row["id"] for row in report["results"] if row["status"] == "INVALID"]
    for part in ("results", "comparisons"):
        report[part] = [row for row in report[part] if row["id"] not in invalid]
    # What is left out is not missing.
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
        description="Run every check that needs a card: doctor, the CUDA tests, the"
        " rows of the set cuda-check, and a baseline from them.",
    )
    add_machine_options(parser, out="cuda-check-results", budget_s=480)
    return parser


def add_machine_options(
    parser: argparse.ArgumentParser, *, out: str, budget_s: int
) -> None:
    """Add what every script for such a machine takes, with its defaults."""
    parser.add_argument(
        "--wheels",
        type=Path,
        metavar="DIR",
        help="wheels to take what this Python lacks from (default: wheelhouse/, if"
        " there is one)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path(out))
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        default=float(budget_s),
        help=f"for all steps together (default: {budget_s})",
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run the same steps on the CPU with a tiny model",
    )

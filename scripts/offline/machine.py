"""What the scripts for a machine without network share: options, and how they run.

Standard library only, since such a machine may lack everything else.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from scripts import ROOT
from scripts.offline.install import install_kernels, install_wheels
from scripts.offline.steps import Status, StepRunner

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


def machine_parser(
    name: str, description: str, *, budget_s: int
) -> argparse.ArgumentParser:
    """The options of every script for such a machine, with their defaults."""
    out = f"{name.replace('_', '-')}-results"
    parser = argparse.ArgumentParser(prog=name, description=description)
    add = parser.add_argument
    text = "take the packages that this Python lacks from these wheels"
    default = "(default: wheelhouse/, if it exists)"
    add("--wheels", type=Path, metavar="DIR", help=f"{text} {default}")
    text = f"write the results into this folder (default: {out})"
    add("--out", type=Path, metavar="DIR", default=Path(out), help=text)
    text = f"time for all steps together (default: {budget_s})"
    add("--budget", type=float, metavar="SECONDS", default=float(budget_s), help=text)
    text = "run the same steps on the CPU with a tiny model"
    add("--rehearse", action="store_true", help=text)
    return parser


def run_script(
    name: str,
    arguments: argparse.Namespace,
    work: Callable[[StepRunner, Path], None],
    *,
    then: str,
    measures: bool = True,
) -> int:
    """Do the `work`, with a folder for its own use and the packages that are lacking.

    Returns the exit code: 0 if all went well, 1 if a step did not, 2 where nothing can
    be measured. After a signal, `then` says what the user finds or does next.
    """
    out: Path = arguments.out.absolute()
    wheels: Path | None = arguments.wheels
    runner = StepRunner(out, budget_s=arguments.budget)
    problem = None
    if wheels is not None and not wheels.is_dir():
        problem = f"wheels: {str(wheels)!r} is no folder"
    elif wheels is None and (ROOT / "wheelhouse").is_dir():
        wheels = ROOT / "wheelhouse"
    try:
        with (
            runner.interruptible(),
            tempfile.TemporaryDirectory(prefix="cuda-") as scratch,
        ):
            if measures and problem is None:
                needed = "torch" if arguments.rehearse else "card"
                probe = [sys.executable, "-c", _PROBE, needed]
                problem = runner.ask(probe, limit_s=120)
            if problem is not None:
                return refuse(name, problem)
            out.mkdir(parents=True, exist_ok=True)
            if arguments.rehearse:
                runner.heading = REHEARSAL
                print(REHEARSAL, flush=True)
            install_wheels(runner, wheels, Path(scratch) / "site")
            with install_kernels(runner, wheels) if measures else nullcontext():
                work(runner, Path(scratch))
    except KeyboardInterrupt:
        assert runner.signal is not None, "it is raised after a signal"
        print(f"{name}: ended by {runner.signal.name}; {then}", file=sys.stderr)
        return 128 + runner.signal
    print(f"\n{runner.summary}\nresults: {out}")
    if runner.heading:
        print(runner.heading)
    return int(any(outcome.status is not Status.OK for outcome in runner.outcomes))


def refuse(script: str, reason: str) -> int:
    """Print in one line why `script` does not run; returns its exit code."""
    print(f"{script}: error: {reason}", file=sys.stderr)
    return 2

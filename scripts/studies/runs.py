"""Runs of `llama-perf` for a study, whose results stay in files."""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from llama_perf.results.run import Environment, Report, read_report
from scripts import ROOT


def llama_perf(words: Sequence[str], *, allowed: Sequence[int]) -> None:
    """Run `llama-perf WORDS`; exits where its code is not allowed."""
    command = [sys.executable, "-m", "llama_perf", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in allowed:
        raise SystemExit(f"llama-perf {' '.join(words)}: exit code {done.returncode}")


def parsed(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, *, folder: str
) -> argparse.Namespace:
    """The arguments, with those that all studies have; makes the work folder.

    `folder` is its name by default.
    """
    add = parser.add_argument
    add("--work", type=Path, metavar="DIR", default=ROOT / ".llama-perf" / folder)
    text = "take over the runs in the work folder"
    add("--resume", action="store_true", help=text)
    add("--write", action="store_true", help="replace the table of docs/gate-why.md")
    arguments = parser.parse_args(argv)
    arguments.work = arguments.work.absolute()
    arguments.work.mkdir(parents=True, exist_ok=True)
    return arguments


def stored_or_run(path: Path, *, resume: bool, run: Callable[[], None]) -> Report:
    """The results in `path`: with `resume` those of a whole run, else of `run`."""
    report = read_report(path) if resume and path.exists() else None
    if report is None or len(report.results) < report.selected:
        run()
        report = read_report(path)
    return report


def conditions(machine: Environment) -> str:
    """The machine and the commit in words."""
    return (
        f"{machine.device_name}, {machine.threads} threads, torch {machine.torch},"
        f" llama-perf {machine.commit}"
    )

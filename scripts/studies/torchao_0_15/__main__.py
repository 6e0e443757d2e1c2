"""`python -m scripts.studies.torchao_0_15`: our generation compared with torchao's.

The peer is torchao 0.15's `generate.py`. Both run every row in turn, round after round,
each in a process of its own. The medians go to docs/torchao-0.15.md. The module `peer`
starts a process and reads what it printed.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from llama_perf.measure.environment import collect
from llama_perf.rows.spec import RowSpec
from scripts.doc_tables.document import github_table, place, replace_between
from scripts.studies.torchao_0_15.peer import (
    MODEL,
    ROOT,
    SIDES,
    TORCHAO,
    Ran,
    command,
    make_checkpoint,
    make_environment,
    name_of,
    row_of,
    run,
    shown_command,
    text_of,
)

PLACE = place("torchao-0.15.md", "comparison")
ROWS = (
    row_of(),
    row_of(compile=False),
    row_of(quantization="int8wo"),
    row_of(quantization="int8wo", compile=False),
    row_of(quantization="int8dq"),
    row_of(quantization="int8dq", compile=False),
    row_of(quantization="int4wo-64"),
    # Fewer tokens where torchao takes a quarter of a second or more for each.
    row_of(quantization="uintx-4-64", max_new_tokens=40, num_samples=2),
    row_of(quantization="uintx-2-8", max_new_tokens=20, num_samples=1),
    row_of(quantization="fp6", max_new_tokens=20, num_samples=1),
    row_of(quantization="sparse-marlin"),
    row_of(quantization="autoquant"),
)
# A cache as small as 200 tokens need, and a larger one: eager, as the table's rows are.
SMALL_CACHE = row_of(compile=False, max_new_tokens=200)
LARGE_CACHES = (
    replace(SMALL_CACHE, cache_size=2048),
    replace(SMALL_CACHE, cache_size=2048, kv_cache_quantization=True),
)
_GREEDY = ("--temperature", "0")
_LIMIT_S = 600.0
_FIGURES = (("tok_s", 2), ("decode_tok_s", 2), ("first_token_ms", 1))
_WRONG = "wrong values: compiled, its greedy text is not that of its own eager run"
Processes = dict[tuple[RowSpec, str], list[Ran]]
"""The processes of each row and side, in the order in which they ran."""
RunSide = Callable[..., Ran]
"""Runs a side's row, with more flags, in a process."""


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and write the table; returns 1 if a row of ours is the slower one."""
    arguments = _parser().parse_args(argv)
    work: Path = arguments.work.absolute()
    weights = make_checkpoint(work / "checkpoints" / "llama-perf" / MODEL)
    python = arguments.python or make_environment(work / "environment")
    run_side = partial(_run, weights=weights, python=python.absolute(), work=work)
    same = _same_text(run_side)
    start = time.monotonic()
    processes: Processes = {}
    text = ""
    for number in _rounds(run_side, arguments.only, arguments.rounds, processes):
        minutes = (time.monotonic() - start) / 60
        tables = [_conditions(number, minutes, same), comparison_table(processes)]
        text = "\n\n".join([*tables, *cache_table(processes)])
        # After each round, so that a run that is stopped leaves the rounds before it.
        if not arguments.only:
            replace_between(*PLACE, text)
    print(text)
    slower = [
        name_of(row)
        for row in dict.fromkeys(row for row, _ in processes)
        if (ratio(*(processes[row, side] for side in SIDES)) or 1.0) < 1.0
    ]
    print("\n".join(f"slower than torchao {TORCHAO}: {name}" for name in slower))
    return 1 if slower else 0


def _run(
    side: str, row: RowSpec, *flags: str, weights: Path, python: Path, work: Path
) -> Ran:
    argv = [*command(side, row, weights, python), *flags]
    return run(side, argv, row, work, _LIMIT_S)


def _rounds(
    run_side: RunSide, only: str, rounds: int, processes: Processes
) -> Iterator[int]:
    """Add each round's processes to `processes`, then yield its number.

    A side that failed on a row is not asked again.
    """
    for row in (*ROWS, SMALL_CACHE, *LARGE_CACHES):
        for side in SIDES:
            if only in name_of(row):
                wrong = _problem(side, row, run_side)
                processes[row, side] = [] if wrong is None else [wrong]
                outcome = wrong.problem if wrong else "runs"
                print(f"{name_of(row)}, {side}: {outcome}", flush=True)
    for number in range(1, rounds + 1):
        for (row, side), before in processes.items():
            if any(ran.problem for ran in before):
                continue
            before.append(ran := run_side(side, row))
            rates = ", ".join(f"{sample.tok_s:.2f}" for sample in ran.rates)
            outcome = ran.problem or f"tok/s {rates}"
            print(f"round {number}, {name_of(row)}, {side}: {outcome}", flush=True)
        yield number


def _problem(side: str, row: RowSpec, run_side: RunSide) -> Ran | None:
    """A short greedy run of the row that failed, or wrote another text if compiled.

    None if all is well. A row that computes wrong values has no speed to compare.
    """
    texts = set()
    for compiled in {row.compile, False}:
        short = replace(row, compile=compiled, max_new_tokens=8, num_samples=1)
        ran = run_side(side, short, *_GREEDY)
        if ran.problem is not None:
            return ran
        texts.add(text_of(ran.output))
    return None if len(texts) == 1 else Ran(problem=_WRONG)


def _same_text(run_side: RunSide) -> bool:
    """Whether both generate the same greedy text from the checkpoint."""
    texts = set()
    for side in SIDES:
        row = row_of(compile=False, max_new_tokens=20, num_samples=1)
        ran = run_side(side, row, *_GREEDY)
        if ran.problem is not None:
            raise SystemExit(f"{side}: {ran.problem}\n{ran.output}")
        texts.add(text_of(ran.output))
    return len(texts) == 1


def _median(runs: Sequence[Ran], field: str) -> float | None:
    """The median of a field of all samples, None without any."""
    values = [getattr(rates, field) for ran in runs for rates in ran.rates]
    return median(values) if values else None


def ratio(theirs: Sequence[Ran], ours: Sequence[Ran]) -> float | None:
    """The tok/s of `ours` over `theirs`, medians of all samples; None without both."""
    their_tok_s, our_tok_s = _median(theirs, "tok_s"), _median(ours, "tok_s")
    return our_tok_s / their_tok_s if our_tok_s and their_tok_s else None


def _cell(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def comparison_table(processes: Processes) -> str:
    """Markdown: a line for each row, then why a side has no figures."""
    headers = ["row", "torchao tok/s", "llama-perf tok/s", "ratio", "ratio by round"]
    headers += ["decode tok/s", "first token ms"]
    lines, problems = [], []
    for row in dict.fromkeys(row for row, _ in processes):
        pair = [processes[row, side] for side in SIDES]
        tok_s, decode_tok_s, first_token_ms = (
            [_cell(_median(runs, field), digits) for runs in pair]
            for field, digits in _FIGURES
        )
        # Unequal where a side failed in a later round.
        rounds = [ratio([theirs], [ours]) for theirs, ours in zip(*pair, strict=False)]
        by_round = [_cell(value) for value in rounds if value is not None]
        cells = [name_of(row), *tok_s, _cell(ratio(*pair))]
        cells += [", ".join(by_round) or "-"]
        lines.append([*cells, " / ".join(decode_tok_s), " / ".join(first_token_ms)])
        problems += [
            f"- {name_of(row)}, {side}: `{_short(ran.problem)}`"
            for side, runs in zip(SIDES, pair, strict=True)
            for ran in runs
            if ran.problem
        ]
    table = github_table(lines, headers)
    return "\n\n".join([table, *(["\n".join(problems)] if problems else [])])


def cache_table(processes: Processes) -> list[str]:
    """The speed with a larger cache as a share of the small one's, markdown.

    Nothing if one of the rows was not run.
    """
    lines = []
    for row in LARGE_CACHES:
        shares = [
            ratio(*(processes.get((spec, side), []) for spec in (SMALL_CACHE, row)))
            for side in SIDES
        ]
        if None in shares:
            return []
        lines.append([name_of(row), *map(_cell, shares)])
    return [github_table(lines, ["share of the small cache's tok/s", *SIDES])]


def _short(problem: str) -> str:
    # Up to the first sentence: torch goes on for a page about dispatch keys.
    sentence = problem.split(". ")[0]
    return sentence if len(sentence) <= 150 else f"{sentence[:147]}..."


def _conditions(rounds: int, minutes: float, same: bool) -> str:
    environment = collect(torch.device("cpu"))
    text = "the same" if same else "different"
    shown = "\n".join(shown_command(side, ROWS[0]) for side in SIDES)
    return (
        f"{environment.device_name}, {environment.threads} threads,"
        f" {environment.platform};"
        f" Python {environment.python}, torch {environment.torch} on both sides,"
        f" torchao {TORCHAO} and llama-perf {environment.commit}; {rounds} rounds,"
        f" {minutes:.0f} minutes. Greedy text of both sides: {text}."
        f"\n\n```\n{shown}\n```"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.torchao_0_15",
        description=f"Run torchao {TORCHAO}'s generate.py and this project's on the"
        " same small model on the CPU, in turn, and compare their speed.",
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        default=ROOT / ".llama-perf" / "torchao-0.15",
        help="folder for the checkpoint, the environment and compiled code",
    )
    parser.add_argument(
        "--python",
        type=Path,
        metavar="FILE",
        help=f"the Python of an environment that has torchao {TORCHAO} (default: one"
        " is made)",
    )
    parser.add_argument("--rounds", type=int, metavar="N", default=3)
    parser.add_argument(
        "--only",
        metavar="TEXT",
        default="",
        help="rows whose name holds this text; the document is left as it is",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

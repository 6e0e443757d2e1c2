"""`python -m scripts.studies.torchao_0_15`: our generation compared with torchao's.

The peer is the `generate.py` of torchao 0.15, the last one that had all schemes. Both
run every row of one small checkpoint in turn, round after round, each in a process of
its own. The medians of what they print go to docs/torchao-0.15.md.
"""

import argparse
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from llama_perf.measure.environment import collect
from llama_perf.rows.spec import RowSpec
from llama_perf.run.display import Display
from llama_perf.run.time_left import Task
from scripts import ROOT
from scripts.doc_tables.document import Place, github_table
from scripts.studies.peer_environment import make_environment
from scripts.studies.small_llama import CONFIGS, MODEL, NARROW, PROMPT, make_checkpoint

_SECTIONS = {MODEL: "comparison", NARROW: "narrow"}
TORCHAO = "0.15.0"
# torchao 0.15 names none of what its generate.py imports.
_PACKAGES = (
    *(f"torchao=={TORCHAO}", f"torch=={torch.__version__.split('+')[0]}"),
    *("numpy", "sentencepiece", "setuptools", "tiktoken"),
)
_ROW = RowSpec(model=MODEL, dtype="float32", device="cpu", compile=True, num_samples=3)
row_of = partial(replace, _ROW, max_new_tokens=100)
"""A row that both sides run, with these defaults."""
_LONG = row_of(compile=False, max_new_tokens=200)
ROWS = (
    *(
        row_of(quantization=scheme, compile=compiled)
        for scheme in (None, "int8wo", "int8dq")
        for compiled in (True, False)
    ),
    row_of(quantization="int4wo-64"),
    # Fewer tokens where torchao takes a quarter of a second or more for each.
    row_of(quantization="uintx-4-64", max_new_tokens=40, num_samples=2),
    row_of(quantization="uintx-2-8", max_new_tokens=20, num_samples=1),
    row_of(quantization="fp6", max_new_tokens=20, num_samples=1),
    row_of(quantization="sparse-marlin"),
    row_of(quantization="autoquant"),
    *(
        row_of(model=NARROW, quantization=scheme, compile=False)
        for scheme in (None, "int8wo", "int8dq", "fp6", "uintx-4-64", "uintx-2-8")
    ),
    # A cache as small as 200 tokens need, and larger ones.
    _LONG,
    replace(_LONG, cache_size=2048),
    replace(_LONG, cache_size=2048, kv_cache_quantization=True),
)

# torchao finds a model's shape by its name in a table of its own, so the name is
# entered there; the rest is its file, run as `python generate.py` would.
_LAUNCH = """\
import runpy, sys
from torchao._models.llama import model
model.transformer_configs[{name!r}] = dict(
    n_layer={config.n_layers}, n_head={config.n_heads}, dim={config.dim},
    vocab_size={config.vocab_size},
)
sys.argv[0] = "generate.py"
runpy.run_module("torchao._models.llama.generate", run_name="__main__", alter_sys=True)
"""
_LIMIT_S = 600.0
_ERROR = re.compile(r"^(?:llama-perf: error|[\w.]*(?:Error|Exception)): .*", re.M)
# torchao prints seconds, of all of it and of the prefill; we tokens/s and milliseconds.
_SAMPLES = {
    "torchao": r"Sample \d+ \| overall time ([\d.]+) s .*\| prefill time ([\d.]+) s",
    "llama-perf": r"Time for inference \d+: .* sec total, ([\d.]+) tokens/sec,"
    r" time to first token ([\d.]+) ms",
}
SIDES = tuple(_SAMPLES)


class Rates(NamedTuple):
    """One generation: tokens/s of all of it and of its decoding, first token in ms."""

    tok_s: float
    decode_tok_s: float
    first_token_ms: float


class Ran(NamedTuple):
    """One side's process: its samples, or why there are none; its text."""

    rates: Sequence[Rates] = ()
    problem: str | None = None
    output: str = ""


Processes = dict[RowSpec, tuple[list[Ran], list[Ran]]]
"""Those of each row, torchao's and ours, in the order in which they ran."""


def name_of(row: RowSpec) -> str:
    """The row's name in the table."""
    more = {
        f"{row.max_new_tokens} tokens": row.max_new_tokens > 100,
        f"cache {row.cache_size}": row.cache_size is not None,
        "int8 KV": row.kv_cache_quantization,
    }
    words = [row.quantization or "none", "compiled" if row.compile else "eager"]
    return ", ".join(words + [word for word, said in more.items() if said])


def _flags(row: RowSpec, weights: Path) -> list[str]:
    """The flags that both sides take."""
    flags = ["--checkpoint_path", str(weights)]
    flags += ["--device", row.device, "--precision", row.dtype]
    for name in ("num_samples", "max_new_tokens", "quantization", "cache_size"):
        if (value := getattr(row, name)) is not None:
            flags += [f"--{name}", str(value)]
    switches = ("compile", "kv_cache_quantization")
    return flags + [f"--{name}" for name in switches if getattr(row, name)]


def command(side: str, row: RowSpec, weights: Path, python: Path) -> list[str]:
    """The command of a side; `python` is that of torchao 0.15's environment."""
    flags = _flags(row, weights)
    if side == "llama-perf":
        start = [sys.executable, "-m", "llama_perf", "generate"]
        return [*start, *flags, "--kernels", "native"]
    if row.quantization == "sparse-marlin":
        flags += ["--sparsity", "semi-structured"]
    launch = _LAUNCH.format(name=row.model, config=CONFIGS[row.model])
    return [str(python), "-c", launch, *flags]


def run(side: str, argv: Sequence[str], row: RowSpec, cache: Path) -> Ran:
    """Run a side's command; `cache` keeps what its compiler made."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT) if side == "llama-perf" else "",
        # Threads that spin while they wait starve others on a shared machine.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / side),
    }
    try:
        done = subprocess.run(
            argv,
            cwd=cache,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return Ran(problem=f"stopped after {_LIMIT_S:.0f} s")
    rates, problem = read_samples(side, done.stdout, row.max_new_tokens), None
    if done.returncode:
        errors = _ERROR.findall(done.stdout)
        problem = errors[-1] if errors else f"exit code {done.returncode}"
    elif len(rates) != row.num_samples:
        problem = f"{len(rates)} samples instead of {row.num_samples}"
    return Ran(() if problem else rates, problem, done.stdout)


def read_samples(side: str, output: str, max_new_tokens: int) -> list[Rates]:
    """The samples a side printed.

    A decoding rate counts the tokens after the first and the time after it, on both
    sides alike: torchao prints one that counts the first token too.
    """
    rates = []
    for sample in re.findall(f"^{_SAMPLES[side]}", output, re.M):
        total_s, first_s = map(float, sample)
        if side == "llama-perf":
            total_s, first_s = max_new_tokens / total_s, first_s / 1e3
        decode_tok_s = (max_new_tokens - 1) / (total_s - first_s)
        rates.append(Rates(max_new_tokens / total_s, decode_tok_s, first_s * 1e3))
    return rates


def text_of(output: str) -> str:
    """The first text that a side generated from the prompt, but for a line break."""
    return next((line for line in output.splitlines() if line.startswith(PROMPT)), "")


def greedy(side: str, row: RowSpec, run_side: Callable[..., Ran]) -> Ran:
    """The row run greedily; a failed run if compiled it writes another text than eager.

    A row that computes wrong values has no speed to compare.
    """
    texts = set()
    for compiled in {row.compile, False}:
        once = replace(row, compile=compiled, num_samples=1)
        ran = run_side(side, once, "--temperature", "0")
        if ran.problem is not None:
            return ran
        texts.add(text_of(ran.output))
    problem = "wrong values: compiled, its greedy text is not that of its own eager run"
    return ran if len(texts) == 1 else Ran(problem=problem)


def _median(runs: Sequence[Ran], field: str) -> float:
    """The median of a field of all samples; not a number without any."""
    values = [getattr(rates, field) for ran in runs for rates in ran.rates]
    return float(median(values or [math.nan]))


def ratio(theirs: Sequence[Ran], ours: Sequence[Ran]) -> float:
    """The tok/s of `ours` over `theirs`, medians of all samples."""
    return _median(ours, "tok_s") / _median(theirs, "tok_s")


def _cell(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def comparison_table(processes: Processes) -> str:
    """Markdown: a line for each row, then why a side has no figures."""
    headers = ["row", "torchao tok/s", "llama-perf tok/s", "ratio", "ratio by round"]
    headers += ["decode tok/s", "first token ms"]
    lines, problems = [], []
    for row, pair in processes.items():
        tok_s, decode_tok_s, first_token_ms = (
            [_cell(_median(runs, field), digits) for runs in pair]
            for field, digits in zip(Rates._fields, (2, 2, 1), strict=True)
        )
        # Unequal where a side failed in a later round.
        rounds = [ratio([theirs], [ours]) for theirs, ours in zip(*pair, strict=False)]
        by_round = [_cell(value) for value in rounds if not math.isnan(value)]
        cells = [name_of(row), *tok_s, _cell(ratio(*pair)), ", ".join(by_round) or "-"]
        lines.append([*cells, " / ".join(decode_tok_s), " / ".join(first_token_ms)])
        for side, runs in zip(SIDES, pair, strict=True):
            # Up to the first sentence: torch goes on for a page about dispatch keys.
            reasons = [ran.problem.split(". ")[0] for ran in runs if ran.problem]
            problems += [f"- {name_of(row)}, {side}: `{why:.150}`" for why in reasons]
    return "\n".join([github_table(lines, headers), "", *problems]).rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and write the table; returns 1 if a row of ours is the slower one."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.torchao_0_15",
        description=f"Run torchao {TORCHAO}'s generate.py and this project's on the"
        " same small model on the CPU, in turn, and compare their speed.",
    )
    add = parser.add_argument
    help = "folder for the checkpoint, the environment and compiled code"
    default = ROOT / ".llama-perf" / "torchao-0.15"
    add("--work", type=Path, metavar="DIR", default=default, help=help)
    help = f"the Python of an environment with torchao {TORCHAO} (default: one is made)"
    add("--python", type=Path, metavar="FILE", help=help)
    add("--rounds", type=int, metavar="N", default=3)
    add("--model", choices=CONFIGS, default=MODEL, help="the model that both run")
    help = "rows whose name holds this text; the document is left as it is"
    add("--only", metavar="TEXT", default="", help=help)
    arguments = parser.parse_args(argv)
    work: Path = arguments.work.absolute()
    model: str = arguments.model
    weights = make_checkpoint(work / "checkpoints" / "llama-perf" / model, model)
    folder = work / "environment"
    python = (arguments.python or make_environment(folder, _PACKAGES)).absolute()

    def run_side(side: str, row: RowSpec, *flags: str) -> Ran:
        return run(side, [*command(side, row, weights, python), *flags], row, work)

    start, texts = time.monotonic(), set()
    for side in SIDES:
        brief = row_of(model=model, compile=False, max_new_tokens=20)
        ran = greedy(side, brief, run_side)
        if ran.problem is not None:
            raise SystemExit(f"{side}: {ran.problem}\n{ran.output}")
        texts.add(text_of(ran.output))
    rows = [row for row in ROWS if row.model == model]
    named = (row for row in rows if arguments.only in name_of(row))
    processes: Processes = {row: ([], []) for row in named}
    turns = [
        (side, row, runs)
        for row, pair in processes.items()
        for side, runs in zip(SIDES, pair, strict=True)
    ]
    names = [f"{name_of(row)}, {side}" for side, row, _ in turns]
    display = Display.on(sys.stderr)
    display.plan(
        [
            *(Task(id=f"brief {name}", name=name, kind="brief") for name in names),
            *(
                Task(id=name, name=f"round {number}, {name}", kind="round")
                for number in range(1, arguments.rounds + 1)
                for name in names
            ),
        ]
    )
    for name, (side, row, runs) in zip(names, turns, strict=True):
        with display.next() as running:
            ran = greedy(side, replace(row, max_new_tokens=8), run_side)
            runs += [ran] if ran.problem else []
            running.end(ran.problem or "runs")
        if ran.problem:
            display.drop(name)
    for number in range(1, arguments.rounds + 1):
        for name, (side, row, runs) in zip(names, turns, strict=True):
            if any(ran.problem for ran in runs):
                # It is not asked again.
                continue
            with display.next() as running:
                runs.append(ran := run_side(side, row))
                rates = ", ".join(f"{sample.tok_s:.2f}" for sample in ran.rates)
                running.end(ran.problem or f"tok/s {rates}")
            if ran.problem:
                display.drop(name)
        minutes = (time.monotonic() - start) / 60
        text = _conditions(rows[0], number, minutes, same=len(texts) == 1)
        text = f"{text}\n\n{comparison_table(processes)}"
        # After each round, so that a run that is stopped leaves the rounds before it.
        if not arguments.only:
            Place("torchao-0.15.md", _SECTIONS[model]).write(text)
    print(text)
    slower = [name_of(row) for row, pair in processes.items() if ratio(*pair) < 1.0]
    print("\n".join(f"slower than torchao {TORCHAO}: {name}" for name in slower))
    return 1 if slower else 0


def _conditions(row: RowSpec, rounds: int, minutes: float, *, same: bool) -> str:
    here = collect(torch.device("cpu"))
    flags = shlex.join(_flags(row, Path(row.model) / "model.pth"))
    return (
        f"{here.device_name}, {here.threads} threads, {here.platform};"
        f" Python {here.python}, torch {here.torch} on both sides,"
        f" torchao {TORCHAO} and llama-perf {here.commit}; {rounds} rounds,"
        f" {minutes:.0f} minutes."
        f" Greedy text of both sides: {'the same' if same else 'different'}."
        f"\n\n```\npython generate.py {flags}\n"
        f"llama-perf generate --kernels native {flags}\n```"
    )


if __name__ == "__main__":
    sys.exit(main())

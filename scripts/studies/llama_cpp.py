"""`python -m scripts.studies.llama_cpp`: our generation compared with llama.cpp's.

llama.cpp reads the file of SmolLM2 as it is, with 4.5 bits a weight (Q4_1, its head
Q8_0); the native rows of the set `cpu` read their own schemes. All generate as many
tokens from as long a prompt, in turn, round after round, each in a process of its own.
The medians of all samples go to docs/performance.md.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from llama_perf.checkpoints.find import SMOLLM2, find_checkpoint
from llama_perf.measure.environment import collect
from llama_perf.report.table import short_names
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from llama_perf.run.display import Display
from llama_perf.run.options import RunRequest
from llama_perf.run.time_left import Task
from llama_perf.run.worker import run_in_process
from scripts import ROOT
from scripts.doc_tables.document import Place, github_table
from scripts.studies.peer_environment import make_environment

PLACE = Place("performance.md", "llama.cpp")
LLAMA_CPP = "llama.cpp, Q4_1"
_HEADERS = ("row", "tok/s", "of llama.cpp's", "by round", "of the unquantized row's")
_HEADERS_LAST = ("decode tok/s", "first token ms", "% of bandwidth")
# A process of the peer's environment: prints seconds of samples and first tokens.
_PEER = """\
import json, sys, time
from llama_cpp import Llama
path, threads, prompt, new, samples, top_k, temperature = sys.argv[1:]
threads, new, prompt = int(threads), int(new), list(range(100, 100 + int(prompt)))
model = Llama(path, n_ctx=len(prompt) + new, n_threads=threads,
              n_threads_batch=threads, seed=0, verbose=False)
def choose():
    return model.sample(top_k=int(top_k), temp=float(temperature))
def sample():
    model.reset()
    start = time.perf_counter()
    model.eval(prompt)
    token = choose()
    first = time.perf_counter()
    for _ in range(new - 1):
        model.eval([token])
        token = choose()
    return time.perf_counter() - start, first - start
print(json.dumps([sample() for _ in range(int(samples) + 1)][1:]))
"""


class Timed(NamedTuple):
    """A process: seconds of each sample, and those of its first token.

    `bandwidth_gb_s` is what the processor read in the same process, if it was measured.
    """

    total_s: Sequence[float]
    first_s: Sequence[float]
    bandwidth_gb_s: float | None = None
    model_gb: float | None = None


def rows(max_new_tokens: int) -> list[RowSpec]:
    """The native rows of the set `cpu` with a cache as small as their text."""
    return [
        replace(row, max_new_tokens=max_new_tokens)
        for row in selection.load_set("cpu")
        if row.kernels == "native" and row.cache_size is None
    ]


def time_llama_cpp(python: Path, row: RowSpec) -> Timed:
    """llama.cpp on the file of SmolLM2, with the lengths and the sampling of `row`."""
    lengths = row.prompt_length, row.max_new_tokens, row.num_samples
    words = (find_checkpoint(row.model), torch.get_num_threads(), *lengths, row.top_k)
    command = [str(python), "-c", _PEER, *map(str, words), str(row.temperature)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"llama.cpp: exit code {done.returncode}\n{done.stderr}")
    total_s, first_s = zip(*json.loads(done.stdout.splitlines()[-1]), strict=True)
    return Timed(total_s, first_s)


def time_row(row: RowSpec) -> Timed:
    """`row` in a process of its own."""
    ended = run_in_process(row, options=RunRequest(), devices=[row.device])
    result = ended.result
    if (measured := result.measurement) is None:
        raise SystemExit(f"{row.id}: {result.reason}")
    return Timed(
        [ns / 1e9 for ns in measured.sample_ns],
        [ns / 1e9 for ns in measured.first_token_ns],
        measured.device_bandwidth_gb_s,
        measured.model_size_bytes / 1e9,
    )


def comparison_table(
    names: Sequence[str], processes: Sequence[Sequence[Timed]], max_new_tokens: int
) -> str:
    """Markdown: a line a name, the first that of llama.cpp, the second unquantized."""

    def tok_s(runs: Sequence[Timed]) -> float:
        return max_new_tokens / median(s for run in runs for s in run.total_s)

    peer, unquantized, *_ = map(tok_s, processes)
    lines = []
    for name, runs in zip(names, processes, strict=True):
        own = tok_s(runs)
        firsts = [s for run in runs for s in run.first_s]
        decoding = [
            total - first
            for run in runs
            for total, first in zip(run.total_s, run.first_s, strict=True)
        ]
        shares = [
            max_new_tokens / median(run.total_s) * run.model_gb / run.bandwidth_gb_s
            for run in runs
            if run.model_gb and run.bandwidth_gb_s
        ]
        pairs = zip(runs, processes[0], strict=True)
        by_round = [tok_s([run]) / tok_s([other]) for run, other in pairs]
        cells = [name, f"{own:.1f}", f"{own / peer:.2f}"]
        cells += [", ".join(f"{ratio:.2f}" for ratio in by_round)]
        cells += [f"{own / unquantized:.2f}"]
        cells += [f"{(max_new_tokens - 1) / median(decoding):.1f}"]
        cells += [f"{1e3 * median(firsts):.1f}"]
        cells += [f"{100 * median(shares):.0f}" if shares else "-"]
        lines.append(cells)
    return github_table(lines, [*_HEADERS, *_HEADERS_LAST])


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.llama_cpp",
        description=f"Generate with {SMOLLM2} on the CPU by llama.cpp and by the native"
        " rows of the set cpu, in turn, and compare their speed.",
    )
    add = parser.add_argument
    help = "the Python of an environment with llama-cpp-python (default: one is made)"
    add("--python", type=Path, metavar="FILE", help=help)
    add("--rounds", type=int, metavar="N", default=3)
    add("--max-new-tokens", type=int, metavar="N", default=100)
    help = "rows whose id holds this text; the document is left as it is"
    add("--only", metavar="TEXT", default="", help=help)
    arguments = parser.parse_args(argv)
    default = ROOT / ".llama-perf" / "llama.cpp"
    packages = ["llama-cpp-python"]
    python = (arguments.python or make_environment(default, packages)).absolute()
    first, *others = rows(arguments.max_new_tokens)
    ours = [first, *(row for row in others if arguments.only in row.id)]
    short, _ = short_names([row.id for row in ours])
    names = [LLAMA_CPP, *short]
    processes: list[list[Timed]] = [[] for _ in names]
    display = Display.on(sys.stderr)
    rounds = range(1, arguments.rounds + 1)
    display.plan(
        Task(id=name, name=f"round {number}, {name}", kind="round")
        for number in rounds
        for name in names
    )
    start = time.monotonic()
    for _ in rounds:
        for row, runs in zip([None, *ours], processes, strict=True):
            with display.next() as running:
                timed = time_row(row) if row else time_llama_cpp(python, first)
                runs.append(timed)
                seconds = median(timed.total_s)
                running.end(f"tok/s {arguments.max_new_tokens / seconds:.1f}")
    here, minutes = collect(torch.device("cpu")), (time.monotonic() - start) / 60
    text = (
        f"{here.device_name}, {here.threads} threads, torch {here.torch}, commit"
        f" {here.commit}; {arguments.rounds} rounds of {first.num_samples} samples,"
        f" {arguments.max_new_tokens} new tokens, {minutes:.0f} minutes.\n\n"
        + comparison_table(names, processes, arguments.max_new_tokens)
    )
    print(text)
    if not arguments.only:
        PLACE.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

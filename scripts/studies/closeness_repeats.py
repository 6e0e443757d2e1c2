"""`python -m scripts.studies.closeness_repeats`: what moves a closeness, and how much.

SmolLM2 is quantized and reads the fixed text beside its unquantized twin, again and
again. In a repeat nothing is changed but last bits: what each layer gives is multiplied
by 1 plus noise as large as the rounding of its dtype, as another order of sums would do
it on another device or in another version of torch. The gate judges each repeat by the
first. A change is one that a limit ought to find. Writes the tables of
docs/gate-why.md.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llama_perf import load_model, quantize_model
from llama_perf.gate.closeness import ClosenessJudgement, judge_closeness
from llama_perf.gate.judgements import limits_of
from llama_perf.llama.transformer import Transformer, TransformerBlock
from llama_perf.results.closeness import CLOSENESS
from llama_perf.results.measurement import Closeness
from llama_perf.rows.limit_overrides import Limits
from llama_perf.rows.spec import RowSpec
from scripts.doc_tables import figures
from scripts.doc_tables.document import Place, github_table
from scripts.doc_tables.smollm2 import smollm2_path, tokens

REPEATS = Place("gate-why.md", "closeness repeats")
CHANGES = Place("gate-why.md", "closeness changes")
_DTYPES = ("float32", "bfloat16")
# Half a step of the dtype beside 1, and some of them in sums of float32.
_LAST_BITS = {"float32": 4 * 2.0**-24, "bfloat16": 2.0**-9}
SCHEMES = ("int8wo", "int8dq", "float8wo", "fp6", "int4wo-64", "uintx-4-64")
_MIDDLE = "layers.14."


class Change(NamedTuple):
    """A scheme, what is done to it, and the scheme that it becomes.

    `factor` multiplies the scales of all linear layers whose names have `where`.
    """

    scheme: str
    words: str
    becomes: str = ""
    factor: float = 1.0
    where: str = ""


FOUND = (
    *(Change(name, "all scales 1 % off", factor=1.01) for name in SCHEMES),
    *(Change(name, "a layer's 10 %", factor=1.1, where=_MIDDLE) for name in SCHEMES),
    Change("int4wo-32", "groups of 64", becomes="int4wo-64"),
    Change("uintx-4-32", "groups of 64", becomes="uintx-4-64"),
    Change("int4wo-64-hqq", "without hqq", becomes="int4wo-64"),
    Change("uintx-4-64-hqq", "without hqq", becomes="uintx-4-64"),
    Change("int8wo", "activations rounded", becomes="int8dq"),
    Change("uintx-4-64", "3 bits", becomes="uintx-3-64"),
)


def _limits(scheme: str) -> Limits:
    row = RowSpec(model="SmolLM2-135M-Instruct", device="cpu", quantization=scheme)
    return limits_of(row)


@cache
def _unquantized(dtype: str) -> Transformer:
    return load_model(smollm2_path(), dtype=dtype)


@cache
def _twin(dtype: str) -> Tensor:
    return _unquantized(dtype).logits(tokens())


def _logits(model: Transformer, dtype: str, seed: int | None) -> Tensor:
    """The logits of the text, with the last bits of a repeat if it has a `seed`."""
    draw = torch.Generator().manual_seed(seed or 0)

    def run_block(block: nn.Module, *arguments: object) -> Tensor:
        out: Tensor = TransformerBlock.forward(block, *arguments)  # type: ignore[arg-type] # as given
        if seed is None:
            return out
        noise = torch.randn(out.shape, generator=draw) * _LAST_BITS[dtype]
        return (out.float() * (1 + noise)).to(out.dtype)

    ids = tokens()
    positions = torch.arange(ids.shape[1])
    with torch.no_grad():
        return model.head(model.hidden(ids, positions, run_block=run_block)).float()


@lru_cache(maxsize=1)
def _quantized(scheme: str, dtype: str, factor: float, where: str) -> Transformer:
    """SmolLM2 in a scheme, with the scales of the layers multiplied by `factor`."""
    model = deepcopy(_unquantized(dtype))
    for name, module in model.named_modules():
        if factor != 1 and isinstance(module, nn.Linear) and where in name:
            # A scale follows its weights.
            weight = module.weight.detach() * factor
            module.weight = nn.Parameter(weight, requires_grad=False)
    return quantize_model(model, scheme, kernels="native")


@cache
def closeness(
    scheme: str,
    dtype: str,
    factor: float = 1.0,
    where: str = "",
    seed: int | None = None,
) -> Closeness:
    """The closeness of SmolLM2 in a scheme, changed or repeated."""
    model = _quantized(scheme, dtype, factor, where)
    twin = _twin(dtype)
    logits = _logits(model, dtype, seed)
    found = figures.closeness(twin, logits, tokens())
    perplexity = figures.perplexity(twin, tokens())
    return Closeness(
        db=found.signal_to_noise_db,
        kl_nats=found.kl_nats,
        top1_share=found.top1,
        perplexity=perplexity * (1 + found.perplexity_change),
        twin_perplexity=perplexity,
        greedy_tokens=0,
        same_greedy_tokens=0,
        tokens=tokens().shape[1],
        text="fixed",
        seconds=0.0,
    )


def _moved(judged: ClosenessJudgement) -> list[str]:
    """The changes in words, dB first."""
    titles = [title for title, metric in CLOSENESS.items() if metric.limits]
    changes = {change.metric: change.change for change in judged.changes}
    top1 = changes["share of the twin's top-1 tokens"]
    words = [CLOSENESS[title].shown_change(changes[title]) for title in titles]
    return [*words, f"{top1:+.1%}"]


def repeats(count: int) -> Iterator[tuple[str, ...]]:
    """A line for each scheme and dtype: how far its repeats lie from the first one."""
    for dtype in _DTYPES:
        for scheme in SCHEMES:
            limits = _limits(scheme)
            then = closeness(scheme, dtype, seed=0)
            judged = [
                judge_closeness(closeness(scheme, dtype, seed=seed), then, limits)
                for seed in range(1, count + 1)
            ]
            # The largest of each, by its size.
            moved = [
                max(cells, key=lambda cell: abs(float(cell.rstrip("dB% "))))
                for cells in zip(*map(_moved, judged), strict=True)
            ]
            worse = sum(bool(one.worse) for one in judged)
            yield (
                *(scheme, dtype, f"{then.db:.2f}", f"{then.kl_nats:.4f}"),
                *moved,
                f"{worse} of {count}",
            )


def changes() -> Iterator[tuple[str, ...]]:
    """A line for each change, in float32: how far it moves the figures, the verdict."""
    dtype = _DTYPES[0]
    for change in FOUND:
        then = closeness(change.scheme, dtype)
        becomes = change.becomes or change.scheme
        now = closeness(becomes, dtype, change.factor, change.where)
        judged = judge_closeness(now, then, _limits(change.scheme))
        worse = "WORSE" if judged.worse else "not found"
        yield change.scheme, change.words, *_moved(judged), worse


_MOVED = ("dB", "divergence", "perplexity", "top-1")


def main(argv: Sequence[str] | None = None) -> None:
    """Print both tables, or write them into the document."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.closeness_repeats",
        description="Measure what moves a closeness.",
    )
    text = "repeats of each scheme (default: %(default)s)"
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help=text)
    parser.add_argument("--write", action="store_true", help="write the document")
    arguments = parser.parse_args(argv)
    for place, headers, lines in (
        (
            REPEATS,
            ("scheme", "dtype", "dB", "nats", *_MOVED, "WORSE"),
            repeats(arguments.repeats),
        ),
        (CHANGES, ("scheme", "change", *_MOVED, "verdict"), changes()),
    ):
        done = []
        for line in lines:
            print(*line, sep="  ", file=sys.stderr, flush=True)
            done.append(line)
        table = github_table(done, headers)
        print(table)
        if arguments.write:
            place.write(table)


if __name__ == "__main__":
    main()

"""The choice: for each shape of linear, the candidate with the least time.

The time of a candidate is that of all products with the shape's linears in one
generation, each counted as often as it occurs (torchao's autoquant, which did so until
0.16). Knows no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from llama_perf.devices.device import fingerprint
from llama_perf.errors import RecordError
from llama_perf.llama.config import ModelConfig
from llama_perf.quantize.autoquant.products import Product, logged_products
from llama_perf.quantize.autoquant.times_file import (
    default_path,
    keep,
    machine_key,
    read,
    time_key,
)
from llama_perf.quantize.autoquant.timing import How, time_product
from llama_perf.results.measurement import LinearChoice
from llama_perf.rows.schemes import AUTOQUANT, UNQUANTIZED, Scheme
from llama_perf.rows.spec import FUSED_TOKENS, RowSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """A product, how often a generation multiplies it, and how its row runs it."""

    product: Product
    count: int
    candidates: tuple[str, ...]
    how: How


class _Times:
    """Times of this machine: those in the file, and those taken now."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path, self._machine = path, machine_key(fingerprint(device))
        self.problem = ""
        try:
            known = read(path).machines.get(self._machine, {})
        except RecordError as error:
            self.problem, known = str(error), {}
        self._known = known

    def known(self, key: str) -> float | None:
        return self._known.get(key)

    def add(self, times: dict[str, float]) -> None:
        self._known = {**self._known, **times}
        if self.problem:
            return
        try:
            keep(self._path, self._machine, times)
        except RecordError as error:
            self.problem = str(error)


def choose(
    row: RowSpec,
    config: ModelConfig,
    *,
    notify: Callable[[str], None] = lambda _text: None,
    path: Path | None = None,
) -> tuple[LinearChoice, ...]:
    """The scheme of each shape of linear in an autoquant row, most expensive first.

    Times that the file at `path` has for this machine are used again; the others are
    taken on the row's device, in its dtype, and added to it. `notify` gets a
    line that names them, and one for a file that cannot be used.
    """
    assert row.quantization in AUTOQUANT, f"{row.quantization} chooses nothing"
    device = torch.device(row.device)
    uses = list(products(row, config))
    times = _Times(path or default_path(), device)
    if times.problem:
        notify(f"autoquant: {times.problem}; timing anew without it")
    totals_ms: dict[tuple[int, int], dict[str, float]] = {}
    timed: set[tuple[int, int]] = set()
    for use in uses:
        product_us, new = _product_us(row, use, times, notify)
        shape = (use.product.rows, use.product.columns)
        totals = totals_ms.setdefault(shape, dict.fromkeys(use.candidates, 0.0))
        for name in use.candidates:
            totals[name] += product_us[name] * use.count / 1e3
        if new:
            timed.add(shape)
    if not timed:
        notify("autoquant: every time was taken before and is used again")
    elif times.problem:
        notify(f"autoquant: the times are not kept: {times.problem}")
    choices = [
        LinearChoice(
            out_features=rows,
            in_features=columns,
            products=_counts(uses, (rows, columns)),
            chosen=min(totals, key=totals.__getitem__),
            total_ms=totals,
            reused=(rows, columns) not in timed,
        )
        for (rows, columns), totals in totals_ms.items()
    ]
    return tuple(sorted(choices, key=lambda choice: -choice.total_ms[UNQUANTIZED]))


def products(row: RowSpec, config: ModelConfig) -> Iterator[Use]:
    """Every product of a generation of an autoquant row, with what is to be timed."""
    uses = logged_products(
        config,
        batch_size=row.batch_size,
        prompt_length=row.prompt_length,
        max_new_tokens=row.max_new_tokens,
        attention=row.attention,
        prefill_chunk=row.prefill_chunk,
    )
    gate = _gate_shape(config)
    for product, count in uses.items():
        candidates = AUTOQUANT[str(row.quantization)]
        yield Use(
            product=product,
            count=count,
            candidates=tuple(name for name in candidates if _fits(name, product)),
            how=_how(row, product, gate=(product.rows, product.columns) == gate),
        )


def _counts(uses: Iterable[Use], shape: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """(tokens, products) of the linears of one shape."""
    return tuple(
        (use.product.tokens, use.count)
        for use in uses
        if (use.product.rows, use.product.columns) == shape
    )


def _fits(candidate: str, product: Product) -> bool:
    if candidate == UNQUANTIZED:
        return True
    group_size = Scheme.parse(candidate).group_size
    return group_size is None or product.columns % group_size == 0


def _gate_shape(config: ModelConfig) -> tuple[int, int] | None:
    """(N, K) of gate and up, None where another linear has it too."""
    hidden, dim = config.intermediate_size, config.dim
    others = {config.qkv_size, config.vocab_size, dim}
    return None if hidden in others else (hidden, dim)


def _how(row: RowSpec, product: Product, *, gate: bool = False) -> How:
    """How the row runs a product: what it never calls is not to be timed."""
    if row.fused and product.tokens <= FUSED_TOKENS:
        return "fused gate" if gate else "fused"
    # A prompt's products are the same operators compiled or not; a step's are not.
    compiled = row.compile and product.tokens == row.batch_size
    return "compiled" if compiled else "eager"


def _product_us(
    row: RowSpec, use: Use, times: _Times, notify: Callable[[str], None]
) -> tuple[dict[str, float], bool]:
    """Microseconds of one product by candidate; whether any was timed now."""
    product, how = use.product, use.how
    keys = {
        name: time_key(name, product, dtype=row.dtype, how=how)
        for name in use.candidates
    }
    known = {name: times.known(key) for name, key in keys.items()}
    missing = [name for name, us in known.items() if us is None]
    us = {name: each for name, each in known.items() if each is not None}
    if missing:
        notify(
            f"autoquant: timing {', '.join(missing)} at M = {product.tokens},"
            f" N = {product.rows}, K = {product.columns}"
        )
        taken = time_product(
            product,
            missing,
            dtype=getattr(torch, row.dtype),
            device=torch.device(row.device),
            how=how,
        )
        times.add({keys[name]: each for name, each in taken.items()})
        us |= taken
    return us, bool(missing)

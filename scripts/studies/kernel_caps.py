"""The share of the bandwidth that each format's products can reach: a table of docs.

Compiles the fused products of a decode step of Llama-2-7B and Llama-3-8B for each
architecture, and counts the instructions of their main loops (`sass`). Of a format the
worst product stands in the table. Needs Triton and no GPU; what a card reaches is less.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import product as pairs
from math import ceil

import torch

from llama_perf.llama.presets import preset
from llama_perf.quantize.autoquant import timing
from llama_perf.rows.schemes import UNQUANTIZED
from scripts.doc_tables.document import Place, Table
from scripts.studies import kernel_resources as kernels
from scripts.studies.compile_only import Compiled, compiled
from scripts.studies.product_times import shapes
from scripts.studies.sass import CARDS, ISSUE, Card, Loop, cap, disassemble, main_loop

# The card that each architecture is counted for, the most demanding one.
_CARDS = {80: CARDS["A100"], 90: CARDS["H200"], 100: CARDS["B200"]}
_SHOWN = 90
_COUNTED = (ISSUE, "integer", "half", "tensor", "memory", "barrier")
_REGISTERS, _THREADS, _PROGRAMS = 65536, 2048, 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """A compiled product and its main loop.

    `weight_bytes` are those of the product, `pass_bytes` those of one pass.
    """

    name: str
    compiled: Compiled
    loop: Loop
    weight_bytes: int
    pass_bytes: float
    card: Card

    @property
    def warps(self) -> int:
        """Those of a program."""
        return int(self.compiled.options["num_warps"])

    @property
    def cap(self) -> float:
        """Percent of the card's bandwidth."""
        return cap(self.loop, self.card, warps=self.warps, weight_bytes=self.pass_bytes)

    @property
    def fitting(self) -> int:
        """Programs that a multiprocessor has room for."""
        # Registers are given to a warp in units of 256.
        warp_registers = ceil(self.compiled.registers * 32 / 256) * 256
        shared = self.compiled.shared_bytes + 1024
        return min(
            _REGISTERS // warp_registers // self.warps,
            self.card.shared_kb * 1024 // shared,
            _THREADS // (32 * self.warps),
            _PROGRAMS,
        )

    @property
    def bytes_in_flight(self) -> float:
        """Of weights that a multiprocessor waits for, while its programs compute."""
        columns, rows = self.compiled.options["grid"]
        running = min(self.fitting, columns * rows / self.card.multiprocessors)
        steps = self.compiled.options["STEPS"]
        ahead = self.compiled.options["num_stages"] - 1 if self.loop.asynchronous else 1
        # Without a loop a pass has all steps of a program.
        step_bytes = self.pass_bytes / (steps if self.loop.unrolled else 1)
        return float(running * min(ahead, steps) * step_bytes)


@cache
def products(name: str, capability: int) -> tuple[Product, ...]:
    """The fused products of a format, at the shapes of both models."""
    return tuple(_products(name, capability))


def _products(name: str, capability: int) -> Iterator[Product]:
    scheme = UNQUANTIZED if name == "bfloat16" else name
    for model, kernel in pairs(kernels.MODELS, kernels.KERNELS):
        work = partial(kernels.launch_fused, name, kernel, model=model)
        (made,) = compiled(work, capability)
        rows, columns = shapes(preset(model))[kernel]
        shape = timing.Product(
            tokens=1, rows=rows, columns=columns, dtype=torch.bfloat16
        )
        size = timing.weight_bytes(scheme, shape, torch.device("meta"))
        size *= 2 if kernel == "gate" else 1
        first, second = made.options["grid"]
        loop = main_loop(disassemble(made.cubin))
        steps = second
        if not loop.unrolled:
            # The last split may have fewer steps than the others.
            steps = ceil(made.options["WEIGHT"].UNITS / made.options["BLOCK_U"])
        yield Product(
            name=f"{kernel} of {model}",
            compiled=made,
            loop=loop,
            weight_bytes=size,
            pass_bytes=size / (first * steps),
            card=_CARDS[capability],
        )


def _draw(name: str) -> tuple[list[str], list[str]]:
    caps, spills = [], []
    for capability in kernels.CAPABILITIES:
        made = products(name, capability)
        caps.append(f"{min(product.cap for product in made):.0f}")
        spilled_bytes = max(product.compiled.spilled_bytes for product in made)
        if spilled_bytes:
            spills.append(f"sm_{capability} spills {spilled_bytes} bytes")
    shown = products(name, _SHOWN)
    worst = min(shown, key=lambda product: product.cap)
    counted = worst.loop.pipes
    cells = [
        worst.name,
        worst.loop.narrowest(worst.card),
        *(str(counted[pipe]) for pipe in _COUNTED),
        f"{worst.pass_bytes:.0f}",
        f"{min(product.bytes_in_flight for product in shown) / 1024:.0f}",
        str(max(product.compiled.registers for product in shown)),
        f"{max(product.compiled.shared_bytes for product in shown) / 1024:.0f}",
        str(min(product.fitting for product in shown)),
    ]
    return [*caps, *cells], spills


TABLE = Table(
    place=Place("kernels.md", "caps"),
    headers=(
        "format",
        *(f"cap sm_{capability} (%)" for capability in kernels.CAPABILITIES),
        "worst product on sm_90",
        "limit",
        *_COUNTED,
        "bytes",
        "KB in flight",
        "registers",
        "shared KB",
        "programs",
    ),
    keys=[(name,) for name in kernels.FUSED],
    draw=_draw,
)

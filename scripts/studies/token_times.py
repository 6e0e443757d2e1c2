"""The least time of a token on an H200, from bytes, instructions and launches.

    least = sum over products of the longer of bytes / bandwidth and instructions / rate
            + gaps + ramps + attention

`kernel_caps` counts bytes and instructions. A gap is what a dependent launch costs, as
measured on the card (`dependent_launch_us` of its baseline). A ramp is the time in
which a kernel's first weights arrive and its last programs finish, and the memory is
not full. Attention reads few bytes at 200 positions and waits for its own sums. Ramps
and attention are assumptions. In one persistent kernel for the step a barrier takes the
place of a gap, and the weights of the next product arrive meanwhile.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from llama_perf.llama.presets import preset
from scripts.doc_tables.document import Place, Table
from scripts.studies import kernel_caps
from scripts.studies import kernel_resources as kernels
from scripts.studies.sass import CARDS

GAP_US = 0.55
RAMP_US = 1.0
ATTENTION_US = 4.0
BARRIER_US = 1.0
# The kernels of a step beside a layer's: what it starts from, the head, the next token.
_OUTSIDE = 3
# Percent of the bandwidth, as wanted.
_TARGETS = {
    "bfloat16": 95,
    "int8wo": 91,
    "int8dq": 91,
    "fp6": 86,
    "int4wo-64": 85,
    "uintx-4-64": 85,
    "uintx-2-8": 85,
    "sparse-marlin": 80,
}


@dataclass(frozen=True, slots=True)
class Token:
    """Microseconds of a token: reading its bytes, its instructions, all of it."""

    bytes_us: float
    products_us: float
    launches_us: float
    persistent_us: float

    @property
    def least_us(self) -> float:
        """By kernels that follow each other."""
        return self.products_us + self.launches_us


def token(name: str, model: str) -> Token:
    """A token of `model` in a format of `kernel_resources`."""
    layers = preset(model).n_layers
    bytes_us = products_us = 0.0
    for kernel, size, cap in _products(name, model):
        times = 1 if kernel == "head" else layers
        us = size / (CARDS["H200"].bandwidth * 1e6)
        bytes_us += times * us
        products_us += times * us * max(1.0, 100 / cap)
    kernels_of_step = 5 * layers + _OUTSIDE
    # Four products a layer and the head have a ramp.
    ramps = (4 * layers + 1) * RAMP_US
    attention = layers * ATTENTION_US
    launches = kernels_of_step * GAP_US + ramps + attention
    persistent = products_us + kernels_of_step * BARRIER_US + attention / 2
    return Token(bytes_us, products_us, launches, persistent)


def _products(name: str, model: str) -> Iterator[tuple[str, float, float]]:
    """Each product of a step: its kernel, its bytes, its cap in percent."""
    for product in kernel_caps.products(name, 90):
        kernel, of_model = product.name.split(" of ")
        if of_model == model:
            yield kernel, product.weight_bytes, product.cap


def _draw(model: str, name: str) -> tuple[list[str], list[str]]:
    one = token(name, model)
    share = 100 * one.bytes_us / one.least_us
    gain = 100 * (one.least_us / one.persistent_us - 1)
    figures = (one.bytes_us, one.products_us, one.launches_us, one.least_us)
    cells = [f"{us:.0f}" for us in figures]
    return [*cells, f"{share:.0f}", f"{_TARGETS[name]}", f"{gain:.0f}"], []


TABLE = Table(
    place=Place("kernels.md", "tokens"),
    headers=(
        *("model", "format", "bytes us", "products us", "launches us", "least us"),
        *("share of bandwidth (%)", "wanted (%)", "persistent kernel (%)"),
    ),
    keys=[(model, name) for model in kernels.MODELS for name in _TARGETS],
    draw=_draw,
)

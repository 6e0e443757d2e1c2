"""How long one product takes with each candidate, on the device in use.

Decoding reads every weight from memory, so a candidate is timed over as many copies
of its weight as the caches cannot hold. The candidates take turns. On CUDA all copies
are one captured graph and the median of its replays counts; a CPU is shared and its
noise only ever adds, so there the least counts.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llama_perf.devices.cuda import capture_graph, warm_up
from llama_perf.devices.device import device_of
from llama_perf.kernels.packing import LANES
from llama_perf.llama.compiler import compiler_settings
from llama_perf.llama.layers import product as multiply
from llama_perf.llama.transformer import is_unquantized, tensor_bytes
from llama_perf.quantize.apply import make_quantizer
from llama_perf.rows.schemes import UNQUANTIZED

How = Literal["eager", "compiled", "fused", "fused gate"]
"""An operator by itself, in code that is compiled, or a kernel of a fused step.

Gate and up are one kernel there: of its time each product has half.
"""
# Turns of each candidate: as many as fit the time, but for the least number.
_MIN_ROUNDS, _MAX_ROUNDS = 5, 15
_ROUNDS_NS = 2_000_000_000
_PASS_NS = 50_000_000
# A weight of which more copies fit into the caches is so small that a product with it
# takes a launch's time, wherever it lies; and each copy is a node of the graph.
_MAX_COPIES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """`tokens` (M) rows of activations times a weight (rows, columns): (N, K).

    `dtype` is that of the activations, and `how` says how a row runs it.
    """

    tokens: int
    rows: int
    columns: int
    dtype: torch.dtype = torch.float32
    how: How = "eager"


def time_product(
    product: Product, candidates: Sequence[str], device: torch.device
) -> dict[str, float]:
    """Microseconds of one product with each of `candidates`.

    A candidate that does not fit the shape must not be asked for: its error is raised.
    """
    x = torch.randn((product.tokens, product.columns), device=device).to(product.dtype)
    with torch.no_grad(), compiler_settings():
        run = operator(product, device)
        passes = {
            name: _Pass(x, weight_copies(name, product, device), run)
            for name in candidates
        }
        times = _us(passes, device)
    device_of(device).release_memory()
    return times


def launch_once(product: Product, candidate: str) -> None:
    """Launch what is timed, once, with tensors of the meta device: to compile it."""
    meta, shape = torch.device("meta"), (product.tokens, product.columns)
    x = torch.empty(shape, dtype=product.dtype, device=meta)
    with torch.no_grad():
        operator(product, meta)(x, *weight_copies(candidate, product, meta)[0])


def operator(product: Product, device: torch.device) -> Callable[..., Any]:
    """The product as the row runs it, of activations and a weight, or of two.

    One of a fused step takes more options of its launch.
    """
    if product.how == "eager":
        return multiply
    if product.how == "compiled":
        return torch.compile(multiply, fullgraph=True, dynamic=False)
    from llama_perf.kernels.triton import launch_fused

    blocks = -(-product.rows // LANES)
    counter = torch.zeros(blocks, dtype=torch.int32, device=device)
    # In a step every product gets the peaks from the kernel before it.
    known = launch_fused.any_peaks(device)

    def project(x: Tensor, *weights: Any, **more: Any) -> Any:
        rounded = weights[0].on_tensor_cores(x.dtype)
        peaks = known if rounded else launch_fused.NO_PEAKS
        return launch_fused.project(x, weights, counter, peaks=peaks, **more)

    return project


@dataclass
class _Pass:
    """One product with each copy of a weight, or two with each pair of copies."""

    x: Tensor
    copies: list[tuple[Any, ...]]
    run: Callable[..., Any]

    def __call__(self) -> None:
        for weights in self.copies:
            self.run(self.x, *weights)

    def shorten(self) -> None:
        """Keep as many copies as a pass has time for.

        A product too slow for all of them does not wait for memory, and whether its
        weight was in a cache makes no difference.
        """
        self.run(self.x, *self.copies[0])
        end = time.perf_counter_ns() + _PASS_NS
        for number, weights in enumerate(self.copies, start=1):
            self.run(self.x, *weights)
            if time.perf_counter_ns() > end:
                del self.copies[number:]


def weight_copies(
    name: str, product: Product, device: torch.device
) -> list[tuple[Any, ...]]:
    """Copies of a weight, or pairs of them, as the product takes them."""
    weight = _weight(name, product, device)
    # Two at least: what a launch reads is not what the last one left in a cache.
    count = max(2, 1 + -(-2 * _cache_bytes(device) // tensor_bytes(weight)))
    copies = [_random_like(weight, device) for _ in range(min(count, _MAX_COPIES))]
    if product.how in ("eager", "compiled"):
        return [(copy,) for copy in copies]
    from llama_perf.llama.fused_weights import packed

    singles = [packed(copy, name, torch.device("cuda")) for copy in copies]
    if product.how == "fused":
        return [(single,) for single in singles]
    # None is in two pairs, or a cache would have it the second time.
    return list(zip(singles[::2], singles[1::2], strict=False))


def weight_bytes(name: str, product: Product, device: torch.device) -> int:
    """The bytes that one product with a weight in a candidate's format reads."""
    return tensor_bytes(_weight(name, product, device))


def _weight(name: str, product: Product, device: torch.device) -> Tensor:
    """A weight of a candidate's format on the meta device."""
    shape, dtype = (product.columns, product.rows), product.dtype
    linear = nn.Linear(*shape, bias=False, device="meta", dtype=dtype)
    linear.requires_grad_(False)
    if name != UNQUANTIZED:
        quantize = make_quantizer(name, kernels="native", device=device, dtype=dtype)
        quantize(linear, "autoquant")
    return linear.weight


def _random_like(weight: Tensor, device: torch.device) -> Tensor:
    """A weight of the format of `weight`, which is on the meta device."""
    # Its import is torchao's, which make_quantizer does quietly.
    from llama_perf.quantize.packed_tensor import PackedTensor

    # The time of a product depends on no value, and searching for scales takes long.
    if not is_unquantized(weight):
        kind: Any = type(weight)
        names, format = kind.__tensor_flatten__(weight)
        parts = {name: _random_like(getattr(weight, name), device) for name in names}
        made: Tensor = kind.__tensor_unflatten__(parts, format, None, None)
        # The layout for the meta device may differ from that for this one.
        return made.laid_out_for(device) if isinstance(made, PackedTensor) else made
    if weight.is_floating_point():
        return torch.rand(weight.shape, dtype=weight.dtype, device=device)
    limits = torch.iinfo(weight.dtype)
    return torch.randint(
        limits.min, limits.max, weight.shape, dtype=weight.dtype, device=device
    )


def _cache_bytes(device: torch.device) -> int:
    # Of the meta device one copy is used, however many there are.
    return 0 if device.type == "meta" else device_of(device).cache_bytes()


def _us(passes: Mapping[str, _Pass], device: torch.device) -> dict[str, float]:
    """Microseconds of a product of each pass; the passes take turns."""
    used, on_cuda = device_of(device), device.type == "cuda"
    works: dict[str, Callable[[], None]] = {}
    for name, timed in passes.items():
        if on_cuda:
            # Kernels are compiled and tuned before the capture, which allows neither.
            warm_up(timed)
            works[name] = capture_graph(timed).replay
        else:
            timed.shorten()
            works[name] = timed
    times_ns: dict[str, list[int]] = {name: [] for name in passes}
    end = time.perf_counter_ns() + _ROUNDS_NS
    for number in range(_MAX_ROUNDS):
        if number >= _MIN_ROUNDS and time.perf_counter_ns() > end:
            break
        for name, work in works.items():
            start = used.mark()
            work()
            times_ns[name].append(used.times_ns([start, used.mark()])[1])
    typical: Callable[[list[int]], float] = median if on_cuda else min
    return {
        name: typical(times_ns[name]) / 1e3 / sum(map(len, timed.copies))
        for name, timed in passes.items()
    }

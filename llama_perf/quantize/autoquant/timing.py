"""How long one product takes with each candidate, on the device in use.

Decoding reads every weight from memory, so a candidate is timed over as many copies
of its weight as the caches cannot hold. The candidates take turns. On CUDA all copies
are one captured graph and the median of its replays counts; a CPU is shared and its
noise only ever adds, so there the least counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llama_perf.devices.device import device_of
from llama_perf.kernels.packing import LANES
from llama_perf.kernels.weight import Packed
from llama_perf.llama.compiler import compiler_settings
from llama_perf.llama.decode_step import capture_graph, warm_up
from llama_perf.llama.linear import product as multiply
from llama_perf.llama.transformer import is_unquantized, tensor_bytes
from llama_perf.quantize.apply import make_quantizer
from llama_perf.quantize.autoquant.products import Product
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


def time_product(
    product: Product,
    candidates: Sequence[str],
    *,
    dtype: torch.dtype,
    device: torch.device,
    how: How,
) -> dict[str, float]:
    """Microseconds of one product with each of `candidates`.

    `how` is how the row runs this product. A candidate that does not
    fit the shape must not be asked for: its error is raised.
    """
    x = torch.randn((product.tokens, product.columns), device=device).to(dtype)
    with torch.no_grad(), compiler_settings():
        linear = _linear(how, product, device)
        passes = {
            name: _Pass(
                x, _copies(name, product, dtype=dtype, device=device, how=how), linear
            )
            for name in candidates
        }
        times = _cuda_us(passes) if device.type == "cuda" else _cpu_us(passes)
    del passes
    device_of(device).release_memory()
    return times


def launch_once(
    product: Product, candidate: str, *, dtype: torch.dtype, how: How
) -> None:
    """Launch what is timed, once, with tensors of the meta device: to compile it."""
    device = torch.device("meta")
    x = torch.empty((product.tokens, product.columns), dtype=dtype, device=device)
    copies = _copies(candidate, product, dtype=dtype, device=device, how=how)
    with torch.no_grad():
        _Pass(x, copies[:1], _linear(how, product, device))()


def _linear(how: How, product: Product, device: torch.device) -> Callable[..., Any]:
    """The product as the row runs it, of activations and a weight."""
    if how == "eager":
        return multiply
    if how == "compiled":
        return torch.compile(multiply, fullgraph=True, dynamic=False)
    from llama_perf.kernels.triton import launch_fused

    blocks = -(-product.rows // LANES)
    counter = torch.zeros(blocks, dtype=torch.int32, device=device)
    # In a step every product gets the peaks from the kernel before it.
    known = launch_fused.any_peaks(device)

    def project(x: Tensor, weight: Packed) -> Tensor:
        peaks = known if weight.dynamic else launch_fused.NO_PEAKS
        return launch_fused.project(x, weight, counter, peaks=peaks)

    def project_gated(x: Tensor, pair: tuple[Packed, Packed]) -> Tensor:
        peaks = known if pair[0].dynamic else launch_fused.NO_PEAKS
        return launch_fused.project_gated(x, *pair, counter, peaks=peaks)

    return project if how == "fused" else project_gated


class _Pass:
    """One product with each copy of a weight, or two with each pair of copies."""

    def __init__(
        self, x: Tensor, weights: Sequence[Any], linear: Callable[..., Any]
    ) -> None:
        self._x, self._weights, self._linear = x, weights, linear

    @property
    def products(self) -> int:
        products = 2 if isinstance(self._weights[0], tuple) else 1
        return len(self._weights) * products

    def shorten(self) -> None:
        """Keep as many copies as a pass has time for.

        A product too slow for all of them does not wait for memory, and whether its
        weight was in a cache makes no difference.
        """
        self._linear(self._x, self._weights[0])
        end = time.perf_counter_ns() + _PASS_NS
        for number, weight in enumerate(self._weights, start=1):
            self._linear(self._x, weight)
            if time.perf_counter_ns() > end:
                self._weights = self._weights[:number]
                return

    def __call__(self) -> None:
        for weight in self._weights:
            self._linear(self._x, weight)


def _copies(
    name: str,
    product: Product,
    *,
    dtype: torch.dtype,
    device: torch.device,
    how: How = "eager",
) -> list[Any]:
    weight = _weight(name, product, dtype=dtype, device=device)
    # Two at least: what a launch reads is not what the last one left in a cache.
    count = max(2, 1 + -(-2 * _cache_bytes(device) // tensor_bytes(weight)))
    copies = [_random_like(weight, device) for _ in range(min(count, _MAX_COPIES))]
    if how in ("eager", "compiled"):
        return copies
    from llama_perf.llama.fused import packed

    singles = [packed(copy, name) for copy in copies]
    # None is in two pairs, or a cache would have it the second time.
    return (
        singles
        if how == "fused"
        else list(zip(singles[::2], singles[1::2], strict=False))
    )


def weight_bytes(
    name: str, product: Product, *, dtype: torch.dtype, device: torch.device
) -> int:
    """The bytes that one product with a weight in a candidate's format reads."""
    return tensor_bytes(_weight(name, product, dtype=dtype, device=device))


def _weight(
    name: str, product: Product, *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A weight of a candidate's format on the meta device."""
    linear = nn.Linear(
        product.columns, product.rows, bias=False, device="meta", dtype=dtype
    )
    module = nn.ModuleDict({"linear": linear}).requires_grad_(False)
    if name != UNQUANTIZED:
        quantize = make_quantizer(name, kernels="native", device=device, dtype=dtype)
        quantize(module, "autoquant")
    weight: Tensor = linear.weight
    return weight


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


def _rounds() -> Iterator[int]:
    end = time.perf_counter_ns() + _ROUNDS_NS
    for number in range(_MAX_ROUNDS):
        if number >= _MIN_ROUNDS and time.perf_counter_ns() > end:
            return
        yield number


def _cpu_us(passes: Mapping[str, _Pass]) -> dict[str, float]:
    times: dict[str, list[int]] = {name: [] for name in passes}
    for timed in passes.values():
        timed.shorten()
    for _ in _rounds():
        for name, timed in passes.items():
            start = time.perf_counter_ns()
            timed()
            times[name].append(time.perf_counter_ns() - start)
    return {
        name: min(times[name]) / timed.products / 1e3 for name, timed in passes.items()
    }


def _cuda_us(passes: Mapping[str, _Pass]) -> dict[str, float]:
    graphs = {}
    for name, timed in passes.items():
        # Kernels are compiled and tuned before the capture, which allows neither.
        warm_up(timed)
        graphs[name] = capture_graph(timed)
    times: dict[str, list[float]] = {name: [] for name in passes}
    for _ in _rounds():
        for name, graph in graphs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    return {
        name: median(times[name]) / timed.products * 1e3
        for name, timed in passes.items()
    }

"""The launch of all layers of a decode step as one kernel, `persistent.run_layers`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product as pairs
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llama_perf.kernels.cache_codes import CachedTensors
from llama_perf.kernels.triton.launch import (
    INTERPRETED,
    Launch,
    multiprocessors,
    programs_together,
    run,
)
from llama_perf.kernels.triton.launch_attention import attention_launch
from llama_perf.kernels.triton.launch_products import few_launch
from llama_perf.kernels.triton.persistent import ADDRESSES, ALL, PHASES, run_layers
from llama_perf.kernels.weight import Layout, Packed

_ALL = ALL.value
# Programs of a processor, and the most registers that let so many run: it has 65536,
# and a program 128 threads.
_PROGRAMS = 4
_REGISTERS = 65536 // (_PROGRAMS * 128)
# The interpreter runs programs one after another, and each costs it time.
_INTERPRETED_PROGRAMS = 3


class Tiles(NamedTuple):
    """A product of `run_layers`: BLOCKS of rows, each in SPLITS of STEPS."""

    WEIGHT: Layout
    ROWS: int
    BLOCKS: int
    SPLITS: int
    STEPS: int
    BLOCK_U: int
    BLOCK_N: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """What a layer of the kernel reads: `weights` in the order of its phases.

    `norms` are in front of attention, of gate and up, and of what follows the layer.
    """

    weights: tuple[Packed, Packed, Packed, Packed, Packed]
    norms: tuple[Tensor, Tensor, Tensor]
    cache: CachedTensors

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order in which the kernel finds their addresses."""
        weights = (tensor for weight in self.weights for tensor in weight.tensors)
        return (*self.norms, *weights, *self.cache.pointers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A launch for some tokens, and the floats of its buffers."""

    launch: Launch
    parts: int
    squares: int
    sums: int


class LayersKernel:
    """Runs `layers`, which are alike, over one token of each sequence.

    No tensor of theirs may move: the kernel has their addresses.
    """

    def __init__(self, layers: Sequence[Layer], eps: float) -> None:
        self._layers, self._eps = layers, eps
        addresses = [
            [tensor.data_ptr() for tensor in layer.tensors] for layer in layers
        ]
        assert {len(row) for row in addresses} == {ADDRESSES.value}
        assert not any(at % 16 for row in addresses for at in row), "unaligned"
        device = layers[0].norms[0].device
        self._addresses = torch.tensor(addresses, dtype=torch.int64, device=device)
        self._arrivals = torch.zeros(1, dtype=torch.int32, device=device)
        self._plans: dict[bool, Plan] = {}

    def __call__(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        positions: Tensor,
        filled: Tensor,
        split_counter: Tensor,
        peaks: Tensor,
    ) -> Tensor:
        """Update `x`, (B, 1, dim), in place, and write the caches.

        `angles`, `positions` and `filled` are as of `FusedStep.start`, of one token a
        sequence; `split_counter` and `peaks` as of `FusedStep`.
        """
        first, batch = self._layers[0], len(x)
        wqkv, _, gate, _, _ = first.weights
        kv_heads, width = first.cache.k.shape[1], first.cache.k.shape[3]
        query_heads = wqkv.rows // width - 2 * kv_heads
        q = x.new_empty((batch, 1, query_heads, width))
        ragged = positions.ndim == 2
        plan = self._plans.get(ragged) or self._plan(q, ragged)
        buffers = (
            x.new_empty(count, dtype=torch.float32)
            for count in (plan.parts, plan.squares, plan.sums)
        )
        work = (x, q, torch.empty_like(q), x.new_empty((batch, gate.rows)), *angles)
        state = (positions, filled, peaks, *buffers, split_counter, self._arrivals)
        types = (*wqkv.tensors, first.norms[0], first.cache.k, first.cache.pointers[2])
        sizes = (self._eps, batch, first.cache.k.shape[2], batch * kv_heads)
        inputs, layers = (self._addresses, *work, *state, *types, *sizes), len(self)
        if INTERPRETED:
            # Where programs run one after another none can wait for all.
            for layer, phase in pairs(range(layers), range(PHASES.value)):
                one = (*inputs, layer, layer + 1, layers)
                run(run_layers, plan.launch, one, PHASE=phase)
            return x
        arguments = (*inputs, 0, layers, layers)
        if ragged not in self._plans:
            fitting = programs_together(run_layers, plan.launch, arguments, PHASE=_ALL)
            launch = replace(plan.launch, grid=(fitting,))
            plan = self._plans[ragged] = replace(plan, launch=launch)
        run(run_layers, plan.launch, arguments, PHASE=_ALL)
        return x

    def __len__(self) -> int:
        """The number of layers."""
        return len(self._layers)

    def _plan(self, q: Tensor, ragged: bool) -> Plan:
        """As many programs as the card has registers for."""
        first, batch, dtype = self._layers[0], len(q), q.dtype
        wqkv, output, gate, _, down = first.weights
        one = few_launch(wqkv, batch, dtype, fused=True)
        programs = _PROGRAMS * multiprocessors()
        if INTERPRETED:
            programs = _INTERPRETED_PROGRAMS
        attention = attention_launch(
            q, first.cache, ragged, output.codes, programs=programs
        )
        heads, stretches = attention.grid
        how = attention.constants["HOW"]
        tiles = {
            "HEADS": _tiles(wqkv, batch, dtype, programs, head_width=q.shape[3]),
            "OUTPUT": _tiles(output, batch, dtype, programs),
            "GATED": _tiles(gate, batch, dtype, programs, weights=2),
            "DOWN": _tiles(down, batch, dtype, programs),
        }
        rounded = wqkv.on_tensor_cores(dtype)
        launch = Launch(
            grid=(programs,),
            constants={
                **tiles,
                "ATTENTION": how,
                "STRETCHES": stretches,
                "TOKENS": one.constants["TOKENS"],
                "ROUNDED": rounded,
                "WAITING": not INTERPRETED,
            },
            stages=one.stages,
            registers=_REGISTERS,
            together=True,
        )
        products = [(each, 2 if name == "GATED" else 1) for name, each in tiles.items()]
        return Plan(
            launch=launch,
            parts=max(
                heads * how.SPLITS * how.GROUP * how.D,
                *(tile.SPLITS * count * batch * tile.ROWS for tile, count in products),
            ),
            squares=max(tile.SPLITS * batch * tile.BLOCKS for tile in tiles.values()),
            sums=2 * heads * how.SPLITS * how.GROUP,
        )


def _tiles(
    weight: Packed, tokens: int, dtype: torch.dtype, programs: int, **how: Any
) -> Tiles:
    """A product by `programs` programs; `how` is as of `few_launch`."""
    launch = few_launch(weight, tokens, dtype, fused=True, **how)
    constants, blocks = launch.constants, launch.grid[0]
    steps = -(-weight.layout.UNITS // constants["BLOCK_U"])

    def rounds(split_steps: int) -> int:
        """What the busiest program does; it begins and ends a block in about a step."""
        items: int = blocks * -(-steps // split_steps)
        return -(-items // programs) * (split_steps + 1)

    least = min(2, steps)
    split_steps = min(range(steps, least - 1, -1), key=rounds)
    return Tiles(
        WEIGHT=weight.layout,
        ROWS=weight.rows,
        BLOCKS=blocks,
        SPLITS=-(-steps // split_steps),
        STEPS=split_steps,
        BLOCK_U=constants["BLOCK_U"],
        BLOCK_N=constants["BLOCK_N"],
    )

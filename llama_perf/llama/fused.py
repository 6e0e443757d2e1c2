"""A layer in five kernels: what runs a model's blocks and head for a few tokens.

    norm + QKV + rotary + cache write; attention; output + residual;
    norm + gate/up + SiLU; down + residual

and three around the layers (embedding + angles; norm + head; the next token) instead of
the modules of `model/`, over the same weights and caches, for up to eight tokens at
once: a step of decoding or a short prompt. Activations are rounded where they are
stored and not in between, so logits agree with the modules' up to rounding.
Imports Triton.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llama_perf.errors import NotRunnable
from llama_perf.kernels.cache_codes import CachedTensors
from llama_perf.kernels.packing import LANES
from llama_perf.kernels.triton.launch import INTERPRETED
from llama_perf.kernels.triton.launch_attention import split_attention
from llama_perf.kernels.triton.launch_fused import (
    Norm,
    Peaks,
    Placing,
    project,
    project_gated,
    project_heads,
)
from llama_perf.kernels.triton.launch_sampling import SamplingKernel, start
from llama_perf.kernels.triton.launch_sampling import launch as sampling_launch
from llama_perf.kernels.weight import Packable, Packed, of_floats
from llama_perf.llama.attention import VisiblePositions, attend_filled
from llama_perf.llama.kv_cache import KVCache
from llama_perf.llama.rotary import Rotary
from llama_perf.llama.sampling import ChooseToken, Sampling
from llama_perf.llama.transformer import (
    RMSNorm,
    Transformer,
    TransformerBlock,
    is_unquantized,
)
from llama_perf.rows.spec import FUSED_TOKENS

RunBlock = Callable[..., Tensor]
_CUDA = torch.device("cuda")
# Rows of the peaks that gate and up clear; see `FusedStep`.
_FOLLOWING, _ATTENDED = 2, 3


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """The five linears of a block, as the kernels take them."""

    qkv: Packed
    output: Packed
    gate: Packed
    up: Packed
    down: Packed
    next_norm_weight: Tensor | None
    """Of the norm in front of the next block or the head, where that rounds to int8."""


class FusedStep:
    """The blocks and the head of `model`, whose weights it shares.

    Raises NotRunnable for a device, a batch, a width of heads or a weight that has no
    fused kernel, by name.
    """

    def __init__(self, model: Transformer, *, batch_size: int = 1) -> None:
        # On the meta device launches are compiled and none runs: `compile_only`.
        if model.device.type == "cpu" and not INTERPRETED:
            raise NotRunnable(f"fused: it needs a CUDA device, not {model.device.type}")
        if batch_size > FUSED_TOKENS:
            raise NotRunnable(
                f"fused: a batch of {batch_size} is not allowed; allowed: at most"
                f" {FUSED_TOKENS}"
            )
        width = model.config.head_dim
        if width % LANES:
            raise NotRunnable(
                f"fused: heads are {width} wide; allowed: multiples of {LANES}"
            )
        self._dtype = model.dtype
        self._output = packed(model.output.weight, "output.weight")
        self._layers: dict[TransformerBlock, _Layer] = {}
        norm_weight = model.norm.weight if self._output.dynamic else None
        for index in reversed(range(len(model.layers))):
            block = model.layers[index]
            assert isinstance(block, TransformerBlock)
            layer = _packed_layer(block, f"layers.{index}", norm_weight)
            self._layers[block] = layer
            norm_weight = block.attention_norm.weight if layer.qkv.dynamic else None
        self._first_norm_weight = norm_weight
        rows = max(self._output.rows, model.config.intermediate_size)
        rows = max(rows, model.config.qkv_size, model.config.dim)
        # Largest activations of tokens, as `project` leaves them: of what gate and up,
        # down, the product behind a block or the embedding, and the output take.
        self._peaks = torch.zeros((4, 8), dtype=torch.int32, device=model.device)
        self._peaked: Tensor | None = None
        # Every kernel leaves them 0, and none runs beside another.
        self._split_counter = torch.zeros(
            -(-rows // LANES), dtype=torch.int32, device=model.device
        )

    def start(
        self, model: Transformer, tokens: Tensor, positions: Tensor
    ) -> tuple[Tensor, Rotary, Tensor]:
        """As `Transformer.start`, and what each of `positions` may see, int64."""
        norm_weight = self._first_norm_weight
        found = start(
            tokens,
            positions,
            model.tok_embeddings.weight,
            model.frequencies(),
            norm_weight=norm_weight,
            peaks_out=None if norm_weight is None else self._peaks[_FOLLOWING],
        )
        self._peaked = None if norm_weight is None else found[0]
        return found

    def can_sample(self, sampling: Sampling) -> bool:
        """Whether `token_chooser` has a kernel for it: a large `top_k` has none."""
        launch = sampling_launch(
            vocabulary=self._output.rows,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            dtype=self._dtype,
        )
        return launch is not None

    def token_chooser(self, sampling: Sampling) -> ChooseToken:
        """Choose the next token by one kernel, which draws from `DecodeState.seed`."""
        return SamplingKernel(temperature=sampling.temperature, top_k=sampling.top_k)

    def block(
        self,
        block: TransformerBlock,
        x: Tensor,
        cos_sin: Rotary,
        positions: Tensor,
        cache: KVCache,
        visible: VisiblePositions,
    ) -> Tensor:
        """`x` (B, T, dim) to the same, in place; as `TransformerBlock.forward`.

        B * T is at most eight, and `visible` says what is filled.
        """
        layer = self._layers[block]
        batch, length, dim = x.shape
        hidden = x.view(-1, dim)
        gated_peak, down_peak, following, attended = self._peaks
        gate_dynamic, down_dynamic = layer.gate.dynamic, layer.down.dynamic
        attended_peak = None
        cos, sin = cos_sin
        cached = CachedTensors(
            k=cache.k_cache,
            v=cache.v_cache,
            k_scale=cache.k_scale,
            v_scale=cache.v_scale,
        )
        q = project_heads(
            hidden,
            layer.qkv,
            self._split_counter,
            norm=_norm(block.attention_norm),
            placing=Placing(positions=positions, cos=cos, sin=sin, length=length),
            cache=cached,
            # Of this very tensor: a prompt's other chunks have others.
            peaks_in=following if self._peaked is x else None,
        )
        self._peaked = None
        q = q.view(batch, length, *q.shape[1:])
        if visible.filled is None:
            y = attend_filled(q, cache, visible)
        else:
            attended_peak = attended if layer.output.dynamic else None
            y = split_attention(
                q,
                cached,
                cache.arrivals,
                visible.filled,
                prefetch=layer.output.codes,
                peaks_out=attended_peak,
            )
        project(
            y.reshape(batch * length, -1),
            layer.output,
            self._split_counter,
            residual=hidden,
            peaks=Peaks(
                read=attended_peak,
                written=gated_peak if gate_dynamic else None,
                cleared=down_peak if down_dynamic else None,
                next_norm_weight=block.ffn_norm.weight,
            ),
        )
        gated = project_gated(
            hidden,
            layer.gate,
            layer.up,
            self._split_counter,
            norm=_norm(block.ffn_norm),
            peaks=Peaks(
                read=gated_peak if gate_dynamic else None,
                written=down_peak if down_dynamic else None,
                cleared=self._cleared(layer),
            ),
        )
        project(
            gated,
            layer.down,
            self._split_counter,
            residual=hidden,
            peaks=Peaks(
                read=down_peak if down_dynamic else None,
                written=None if layer.next_norm_weight is None else following,
                cleared=gated_peak if gate_dynamic else None,
                next_norm_weight=layer.next_norm_weight,
            ),
        )
        if layer.next_norm_weight is not None:
            self._peaked = x
        return x

    def _cleared(self, layer: _Layer) -> Tensor | None:
        """Of the peaks those that nobody needs once gate and up run."""
        first = _FOLLOWING if layer.next_norm_weight is not None else _ATTENDED
        last = _ATTENDED if layer.output.dynamic else _FOLLOWING
        return self._peaks[first : last + 1] if first <= last else None

    def head(self, model: Transformer, x: Tensor) -> Tensor:
        """Logits (B, V) of hidden states (B, dim), as `Transformer.head`."""
        before, self._peaked = self._peaked, None
        peak = None
        one = before is not None and before.shape[1] == 1
        # Not of a text of which these are the last, each sequence's from its own chunk.
        if before is not None and one and before.data_ptr() == x.data_ptr():
            peak = self._peaks[_FOLLOWING]
        return project(
            x,
            self._output,
            self._split_counter,
            norm=_norm(model.norm),
            peaks=Peaks(read=peak),
        )

    def block_or(self, other: RunBlock) -> RunBlock:
        """How a block of a prompt is called: `other` where it has too many tokens."""

        def run(
            block: TransformerBlock,
            x: Tensor,
            cos_sin: Rotary,
            positions: Tensor,
            cache: KVCache,
            visible: VisiblePositions,
        ) -> Tensor:
            few = x.shape[0] * x.shape[1] <= FUSED_TOKENS
            chosen: RunBlock = self.block if few else other
            return chosen(block, x, cos_sin, positions, cache, visible)

        return run


def _norm(norm: RMSNorm) -> Norm:
    return Norm(weight=norm.weight, eps=norm.eps)


def _packed_layer(
    block: TransformerBlock, name: str, next_norm_weight: Tensor | None
) -> _Layer:
    attention, feed_forward = block.attention, block.feed_forward
    layer = _Layer(
        qkv=packed(attention.wqkv.weight, f"{name}.attention.wqkv.weight"),
        output=packed(attention.wo.weight, f"{name}.attention.wo.weight"),
        gate=packed(feed_forward.w1.weight, f"{name}.feed_forward.w1.weight"),
        up=packed(feed_forward.w3.weight, f"{name}.feed_forward.w3.weight"),
        down=packed(feed_forward.w2.weight, f"{name}.feed_forward.w2.weight"),
        next_norm_weight=next_norm_weight,
    )
    if layer.gate.layout != layer.up.layout:
        raise NotRunnable(
            f"fused: {name}.feed_forward.w1 and w3 are quantized in two ways"
        )
    return layer


def packed(weight: Tensor, name: str) -> Packed:
    """`weight`, called `name`, as the kernels take it; raises NotRunnable."""
    found: Packed | None = None
    if isinstance(weight, Packable):
        # The interpreter's weights are on a CPU, which may prefer another layout.
        found = weight.laid_out_for(_CUDA).packed()
    elif is_unquantized(weight):
        found = of_floats(weight)
    if found is None:
        raise NotRunnable(f"fused: {name}, {type(weight).__name__}, has no such kernel")
    return found

"""A transformer's layer over a few tokens, as one operator of a CPU.

    x += attention(norm(x)) W_o^T;  x += (silu(g) * u) W_down^T

where g and u are the products of gate and up with norm(x). The formulas are those of
`llama/layers.py` and `llama/attention.py`. Between its weights and caches everything
is float32: activations are rounded only where they are stored, and for int8 products.
It is `cpp/layer.cpp`, and there is no other: `cpp_library.load` first. Ranks that share
a layer sum what its halves add, so these are operators of their own.

Legend: B batch, T tokens of a sequence, H heads of the cache, S positions, D width.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from llama_perf.kernels.weight import Packed

_ATTENTION = (
    "Tensor(b!)[] cache, Tensor[] weights, Tensor[] rotary,"
    " Tensor positions, int[] numbers, float eps, Tensor[] extra, int window"
)
torch.library.define("llama_perf::decode_layer", f"(Tensor(a!) x, {_ATTENTION}) -> ()")
torch.library.define(
    "llama_perf::layer_attention", f"(Tensor x, {_ATTENTION}) -> Tensor"
)
torch.library.define(
    "llama_perf::layer_feed_forward",
    "(Tensor x, Tensor[] weights, int[] numbers, float eps, Tensor[] extra) -> Tensor",
)
decode_layer = torch.ops.llama_perf.decode_layer.default
"""Update `x`, (B, T, dim) side by side in memory, and write the cache.

`cache` are keys and values, (B, H, S, D), then their codes' scales (B, H, S), if any.
Each token attends to the positions up to its own. `positions` are int64 (T,) or (B, T),
`rotary` float32 cosines and sines, D / 2 of each position, or nothing in a layer that
rotates nothing. `weights` and `numbers` are as of `arguments`, `eps` is the norms'.
`extra` are float32 biases and norms of heads, of all of EXTRA or of none. With a
`window` other than 0 a token attends to so many positions at most.
"""
layer_attention = torch.ops.llama_perf.layer_attention.default
"""What the first half adds to `x`, like `x`; arguments as for `decode_layer`."""
layer_feed_forward = torch.ops.llama_perf.layer_feed_forward.default
"""What the second half adds to `x`, like `x`; arguments as for `decode_layer`."""
EXTRA = (
    *("attention.wqkv.bias", "attention.wo.bias", "feed_forward.w1.bias"),
    *("feed_forward.w3.bias", "feed_forward.w2.bias"),
    *("attention.q_norm.weight", "attention.k_norm.weight"),
)
"""What a layer may have besides; one that it has not is an empty tensor."""


def arguments(
    norms: Sequence[Tensor], linears: Sequence[Packed]
) -> tuple[list[Tensor], list[int]]:
    """`weights` and `numbers` of a layer with two norms and five linears.

    The linears are query, key and value; output; gate; up; down.
    """
    weights = [norm.detach().float() for norm in norms]
    numbers: list[int] = []
    for linear in linears:
        weights += linear.tensors
        numbers += [linear.rows, *map(int, linear.layout)]
    return weights, numbers


def extra(parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """`extra` of a layer with these parameters, by the names of EXTRA."""
    if not any(name in parameters for name in EXTRA):
        return []
    none = torch.empty(0)
    return [parameters.get(name, none).detach().float() for name in EXTRA]

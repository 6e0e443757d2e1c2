"""A fused step over weights with a kernel of the user's own.

    norm + QKV; rotary + cache write + attention; output + residual;
    norm + gate/up + SiLU; down + residual

The products with what is around them, and the head's, are the user's `FusedProduct`.
The rest is this project's, on a GPU by Triton where a kernel stands alone; what is left
in torch is compiled where the options say so. A linear that the user's scheme left
alone has the modules' product.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_perf.errors import NotRunnable
from llama_perf.llama.attention import KVCache, Place
from llama_perf.llama.decode_step import ChooseToken
from llama_perf.llama.fused_product import FusedProduct, in_plain_torch
from llama_perf.llama.fused_weights import check_batch
from llama_perf.llama.layers import RMSNorm, Rotary, rotary
from llama_perf.llama.options import EngineOptions, Sampling
from llama_perf.llama.transformer import Transformer, TransformerBlock, is_unquantized
from llama_perf.rows.choices import PERSISTENT


class FusedOwnStep:
    """Runs the blocks and the head of `model` by `product`, as `options` say.

    Raises NotRunnable for a batch that is too large, and for one kernel for all layers.
    """

    def __init__(
        self, model: Transformer, product: FusedProduct, options: EngineOptions
    ) -> None:
        check_batch(options.batch_size)
        if options.fused == PERSISTENT:
            need = "a scheme of your own has kernels for a layer; allowed: true"
            raise NotRunnable(f"fused: {PERSISTENT!r} is not allowed; {need}")
        self._on_triton = (
            model.device.type == "cuda" or "TRITON_INTERPRET" in os.environ
        )
        self._vocabulary, self._dtype = model.config.vocab_size, model.dtype
        self._block: Callable[..., Tensor] = partial(_block, product=product)
        self._head: Callable[..., Tensor] = partial(_head, product=product)
        self._decode: Callable[..., Tensor] = self._block
        if options.compile:
            compiled = partial(torch.compile, fullgraph=True, dynamic=False)
            # A short prompt would be compiled for its length alone.
            self._decode, self._head = compiled(self._block), compiled(self._head)

    def start(
        self, model: Transformer, tokens: Tensor, positions: Tensor
    ) -> tuple[Tensor, Rotary, Tensor | None]:
        """Hidden states of `tokens`, their rotation, and the visible positions, int64.

        The last is None where no kernel counts them.
        """
        if not self._on_triton:
            angles = rotary(model.frequencies(), positions)
            return model.tok_embeddings(tokens), angles, None
        from llama_perf.kernels.triton.launch_sampling import start

        inputs = (tokens, positions, model.tok_embeddings.weight, model.frequencies())
        x, (cos, sin), filled = start(*inputs)
        shape = (*positions.shape, 1, -1)
        return x, (cos.view(shape), sin.view(shape)), filled

    def token_chooser(self, sampling: Sampling) -> ChooseToken | None:
        """One kernel that chooses the next token, as of `FusedStep`; else None."""
        if not self._on_triton:
            return None
        from llama_perf.kernels.triton.launch_sampling import SamplingKernel

        kernel = SamplingKernel(temperature=sampling.temperature, top_k=sampling.top_k)
        return kernel if kernel.launch(self._vocabulary, self._dtype) else None

    def layers(self, *_: object) -> Tensor | None:
        """All layers of a step at once: None, they run one by one, by `block`."""
        return None

    def block(
        self, block: TransformerBlock, x: Tensor, cache: KVCache, place: Place
    ) -> Tensor:
        """As `TransformerBlock.forward`; (B, T, dim) with B * T at most eight."""
        decoding = place.visible.filled is not None
        return (self._decode if decoding else self._block)(block, x, cache, place)

    def head(self, model: Transformer, x: Tensor) -> Tensor:
        """Logits (B, V) of hidden states (B, dim), as `Transformer.head`."""
        return self._head(model.output, model.norm, x)


def _block(
    block: TransformerBlock,
    x: Tensor,
    cache: KVCache,
    place: Place,
    *,
    product: FusedProduct,
) -> Tensor:
    attention, gated = block.attention, block.feed_forward
    linear = partial(_linear, product)
    hidden = x.reshape(-1, x.shape[2])
    qkv = linear(hidden, [attention.wqkv], norm=block.attention_norm)
    y = attention.attend(qkv.view(*x.shape[:2], -1), cache, place).flatten(0, 1)
    hidden = linear(y, [attention.wo], residual=hidden)
    y = linear(hidden, [gated.w1, gated.w3], norm=block.ffn_norm)
    return linear(y, [gated.w2], residual=hidden).view_as(x)


def _head(
    output: nn.Linear, norm: RMSNorm, x: Tensor, *, product: FusedProduct
) -> Tensor:
    return _linear(product, x, [output], norm=norm)


def _linear(
    product: FusedProduct,
    x: Tensor,
    linears: Sequence[nn.Linear],
    *,
    norm: RMSNorm | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """By the user's kernel, unless a weight is not quantized; biases are ours."""
    if len(linears) > 1 and any(linear.bias is not None for linear in linears):
        first, second = (_linear(product, x, [one], norm=norm) for one in linears)
        return F.silu(first) * second
    weights = [linear.weight for linear in linears]
    if any(map(is_unquantized, weights)):
        product = in_plain_torch
    out = product(x, weights, norm=norm, residual=residual)
    return out if linears[0].bias is None else out + linears[0].bias

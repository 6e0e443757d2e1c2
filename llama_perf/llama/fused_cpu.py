"""A layer in one operator of a CPU, for a few tokens at once; of several ranks in two.

It replaces the blocks' modules, over the same weights and caches, for up to eight
tokens: a decode step or a short prompt. The logits agree with the modules' up to
rounding.
"""

from torch import Tensor, nn

from llama_perf.devices.all_reduce import sum_over_ranks
from llama_perf.errors import NotRunnable
from llama_perf.kernels import cpp_library, layer, products
from llama_perf.llama.attention import KVCache, Place
from llama_perf.llama.decode_step import ChooseToken
from llama_perf.llama.fused_weights import check_batch, packed, packed_blocks
from llama_perf.llama.layers import Rotary, rotary
from llama_perf.llama.options import Sampling
from llama_perf.llama.transformer import Transformer, TransformerBlock


class FusedCpuStep:
    """Runs the blocks and the head of `model`, whose weights it shares.

    Raises NotRunnable, which says why the operator is not compiled, or names the batch
    or the weight that it does not take.
    """

    def __init__(self, model: Transformer, *, batch_size: int = 1) -> None:
        check_batch(batch_size)
        if (problem := cpp_library.load()) is not None:
            raise NotRunnable(f"fused: {problem}")
        device, self._ranks = model.device, model.config.ranks
        self._output = packed(model.output.weight, "output.weight", device)
        self._layers: dict[nn.Module, tuple[list[Tensor], list[int], float]] = {}
        # What a layer has besides, and whether it rotates.
        self._extra: dict[nn.Module, tuple[list[Tensor], bool]] = {}
        for _, block, weights in packed_blocks(model, device):
            norms = block.attention_norm.weight, block.ffn_norm.weight
            arguments = layer.arguments(norms, weights)
            self._layers[block] = *arguments, block.attention_norm.eps
            extra = layer.extra(dict(block.named_parameters()))
            self._extra[block] = extra, block.attention.rotates
        # Looking up a module's tensors takes as long as calling the operator.
        self._caches: dict[KVCache, list[Tensor]] = {}

    def start(
        self, model: Transformer, tokens: Tensor, positions: Tensor
    ) -> tuple[Tensor, Rotary, None]:
        """Hidden states of `tokens` and their rotation."""
        angles = rotary(model.frequencies(), positions)
        return model.tok_embeddings(tokens), angles, None

    def token_chooser(self, sampling: Sampling) -> ChooseToken | None:
        """None: the next token is chosen operator by operator."""
        del sampling
        return None

    def layers(self, *_: object) -> Tensor | None:
        """All layers of a step at once: None, they run one by one, by `block`."""
        return None

    def block(
        self, block: TransformerBlock, x: Tensor, cache: KVCache, place: Place
    ) -> Tensor:
        """As `TransformerBlock.forward`, but updates `x`, (B, T, dim), in place.

        Each token sees the positions up to its own.
        """
        weights, numbers, eps = self._layers[block]
        cached = self._caches.get(cache)
        if cached is None:
            cached = [part for part in cache.tensors if part is not None]
            self._caches[cache] = cached
        extra, rotates = self._extra[block]
        where = place.rotary if rotates else (), place.positions
        attention = (cached, weights, *where, numbers, eps, extra, cache.window)
        if self._ranks == 1:
            layer.decode_layer(x, *attention)
            return x
        x += sum_over_ranks(layer.layer_attention(x, *attention))
        x += sum_over_ranks(layer.layer_feed_forward(x, weights, numbers, eps, extra))
        return x

    def head(self, model: Transformer, x: Tensor) -> Tensor:
        """Logits (B, V) of hidden states (B, dim), as `Transformer.head`."""
        return model.gathered(products.product(model.norm(x), self._output))

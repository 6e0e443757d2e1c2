"""All layers of a decode step in one kernel that stays on the card.

A step then has four kernels: embedding and angles; the layers; norm and head; the next
token. A prompt runs on the kernels of `fused`. Imports Triton.
"""

from collections.abc import Sequence

from torch import Tensor

from llama_perf.errors import NotRunnable
from llama_perf.kernels.triton.launch_persistent import Layer, LayersKernel
from llama_perf.llama.attention import KVCache, Place
from llama_perf.llama.fused import FusedStep
from llama_perf.llama.transformer import Transformer, TransformerBlock


class PersistentStep(FusedStep):
    """As `FusedStep`, but for the layers of a step.

    Raises NotRunnable too where the layers of `model` are not quantized alike.
    """

    def __init__(self, model: Transformer, *, batch_size: int = 1) -> None:
        super().__init__(model, batch_size=batch_size)
        config = model.config
        for what, has in (
            ("biases", config.qkv_bias),
            ("norms of queries and keys", config.qk_norm),
            ("a sliding window", config.sliding_window is not None),
            ("layers without RoPE", bool(config.nope_layers)),
        ):
            if has:
                raise NotRunnable(
                    f"fused: 'persistent' has no kernel for {what}; allowed: fused ="
                    " true"
                )
        first, *others = (self._layers[block][0] for block in model.layers)
        kinds = [weight.kind for weight in first]
        for index, weights in enumerate(others, start=1):
            if [weight.kind for weight in weights] != kinds:
                raise _unlike(f"layers.{index} and layers.0")
        types = {tuple(tensor.dtype for tensor in weight.tensors) for weight in first}
        if len(types) > 1 or len({weight.activations for weight in first}) > 1:
            raise _unlike("the linears of layers.0")
        self._kernel: LayersKernel | None = None

    def layers(
        self, model: Transformer, x: Tensor, caches: Sequence[KVCache], place: Place
    ) -> Tensor:
        """Update `x`, (B, 1, dim), by all layers over one token of each sequence.

        `place.visible` has `filled`. `caches` are those of the first call, ever after.
        """
        if self._kernel is None:
            self._kernel = self._made(model, caches)
        filled = place.visible.filled
        assert filled is not None, "a prompt"
        room = self._split_counter, self._peaks
        self._kernel(x, place.rotary, place.positions, filled, *room)
        last = model.layers[len(model.layers) - 1]
        weights, next_norm_weight = self._layers[last]
        peaked = next_norm_weight is not None and self._rounds(weights[0])
        self._peaked = x if peaked else None
        return x

    def _made(self, model: Transformer, caches: Sequence[KVCache]) -> LayersKernel:
        blocks = [
            block for block in model.layers if isinstance(block, TransformerBlock)
        ]
        following = [block.attention_norm for block in blocks[1:]] + [model.norm]
        layers = []
        for block, cache, norm in zip(blocks, caches, following, strict=True):
            wqkv, output, gate, up, down = self._layers[block][0]
            norms = block.attention_norm.weight, block.ffn_norm.weight, norm.weight
            weights = wqkv, output, gate, up, down
            layers.append(Layer(weights=weights, norms=norms, cache=cache.tensors))
        return LayersKernel(layers, model.norm.eps)


def _unlike(what: str) -> NotRunnable:
    need = "fused = 'persistent' needs layers and linears that are alike"
    return NotRunnable(f"fused: {what} are quantized in two ways; {need}")

"""The weights of a model as fused kernels take them, and what they do not take."""

from collections.abc import Iterator

import torch
from torch import Tensor

from llama_perf.errors import NotRunnable
from llama_perf.kernels.weight import Packable, Packed, of_floats
from llama_perf.llama.transformer import Transformer, TransformerBlock, is_unquantized
from llama_perf.rows.spec import FUSED_TOKENS


def check_batch(batch_size: int) -> None:
    """Raise NotRunnable for more sequences than a fused kernel has tokens."""
    if batch_size > FUSED_TOKENS:
        batch = f"a batch of {batch_size} is not allowed"
        raise NotRunnable(f"fused: {batch}; allowed: at most {FUSED_TOKENS}")


def packed(weight: Tensor, name: str, device: torch.device) -> Packed:
    """`weight`, called `name`, in the layout for `device`; raises NotRunnable."""
    if is_unquantized(weight):
        return of_floats(weight)
    if isinstance(weight, Packable):
        packed_weight = weight.laid_out_for(device).packed()
        # Fused kernels do not round activations to float8.
        if packed_weight.activations in ("kept", "int8"):
            return packed_weight
    raise NotRunnable(f"fused: {name}, {type(weight).__name__}, has no such kernel")


def packed_blocks(
    model: Transformer, device: torch.device
) -> Iterator[tuple[int, TransformerBlock, list[Packed]]]:
    """Each block with its number, the last one first, and its linears in order."""
    for index in reversed(range(len(model.layers))):
        block = model.layers[index]
        assert isinstance(block, TransformerBlock)
        names = [f"layers.{index}.{linear}.weight" for linear in model.config.linears]
        weights = [packed(model.get_parameter(name), name, device) for name in names]
        yield index, block, weights

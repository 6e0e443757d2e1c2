"""Parts of quantized weights that were saved, cut without dequantizing them.

This project's own tensors cut themselves, at the borders of groups. torchao's have its
slicing, where a kind of tensor has it. Knows no scheme.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llama_perf.checkpoints.cut import Cut
from llama_perf.errors import WeightsError


def share(weight: Any, cut: Cut) -> Tensor:
    """A part of a quantized weight (N, K), in memory of its own.

    Raises UserError where it cannot be cut so.
    """
    own_share = getattr(weight, "share", None)
    if own_share is not None:
        own: Tensor = own_share(cut.rows or ((0, len(weight)),), cut.columns)
        return own
    shape = tuple(weight.shape)
    try:
        made: Tensor = _joined(weight, [weight[index] for index in cut.indices])
        if tuple(made.shape) == cut.shape_of(shape):
            return made
    # What a kind of tensor lacks ends in any of several kinds of exception.
    except Exception:
        pass
    raise WeightsError(
        f"torchao cannot cut {type(weight).__name__} {shape} so; allowed: the"
        " unquantized model, of which each rank quantizes its share"
    )


def without_data(weight: Any) -> Any:
    """The same weight on the meta device."""
    names, attributes = weight.__tensor_flatten__()
    parts = {name: getattr(weight, name).to("meta") for name in names}
    return _made(weight, parts, attributes)


def _joined(weight: Any, pieces: Sequence[Any]) -> Any:
    """Pieces of a weight, some of its rows each, as one; raises ValueError."""
    names, attributes = pieces[0].__tensor_flatten__()
    parts = {}
    for name in names:
        whole = getattr(weight, name)
        own = [getattr(piece, name) for piece in pieces]
        sizes = [(len(whole), len(weight))]
        sizes += [
            (len(part), len(piece)) for part, piece in zip(own, pieces, strict=True)
        ]
        if len(pieces) > 1 and any(size != rows for size, rows in sizes):
            raise ValueError("its rows are not the first dimension")
        parts[name] = torch.cat(own)
    return _made(weight, parts, attributes)


def _made(weight: Any, parts: dict[str, Tensor], attributes: Any) -> Any:
    return type(weight).__tensor_unflatten__(parts, attributes, None, None)

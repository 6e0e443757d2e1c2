"""Half-quadratic quantization: the zeros that lower the mean of |error| ** 0.7.

torchao's search, after Badri and Shaji (2023), with its results to the last bit. Its
step for outliers raises each error to a power, which takes most of the time and changes
nothing while all errors are small: then it is left out.
"""

from typing import Any

import torch
from torch import Tensor

_POWER, _BETA, _GROWTH, _ROUNDS = 0.7, 10.0, 1.01, 20
# Of the error from which the step changes something: what a power may be rounded by.
_SURELY = 0.9


def hqq_scale_and_zero(groups: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and zero of groups (N, G, size), w = (c - zero) * scale.

    Both float32 (N, G, 1). The third tensor says which groups it suits: its least step
    is 1 / 20000, too wide for a group whose values lie closer together.
    """
    from torchao.quantization.quant_primitives import (
        _choose_qparams_and_quantize_affine_hqq,
    )

    _, *tensors, _ = _choose_qparams_and_quantize_affine_hqq(
        groups.flatten(1),
        nbits=bits,
        group_size=groups.shape[2],
        compute_dtype=torch.float32,
        device=str(groups.device),
        raw_output=True,
        optimize_weights=search_zeros,
    )
    # Clones, since the search leaves inference tensors.
    scale, zero = (tensor.clone().view(*groups.shape[:2], 1) for tensor in tensors)
    span = groups.amax(2, keepdim=True) - groups.amin(2, keepdim=True)
    return scale, zero, scale <= span / (2**bits - 1) * 1.01


@torch.inference_mode()
def search_zeros(
    tensor: Tensor, scale: Tensor, zero: Tensor, min_max: list[int], **_kwargs: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zeros of groups (G, size), as torchao's own search finds them.

    torchao calls it in place of `optimize_weights_proximal_legacy`.
    """
    from torchao.quantization.quant_primitives import _shrink_lp_op

    dtype = torch.float16 if tensor.device.type == "cuda" else torch.float32
    weight, scale, zero = (part.to(dtype) for part in (tensor, scale, zero))
    scaled = weight * scale
    # What each round computes anew, in place.
    codes, error, size = (torch.empty_like(weight) for _ in range(3))
    beta, least = _BETA, 1e4
    for _ in range(_ROUNDS):
        torch.add(scaled, zero, out=codes).round_().clamp_(*min_max)
        torch.sub(codes, zero, out=error).div_(scale)
        torch.sub(weight, error, out=error)
        torch.abs(error, out=size)
        largest = float(size.max())
        if beta * largest ** (2 - _POWER) < _SURELY:
            wanted = scaled
        else:
            wanted = (weight - _shrink_lp_op(error, beta, _POWER)) * scale
        zero = codes.sub_(wanted).mean(dim=1, keepdim=True)
        beta *= _GROWTH
        mean = float(size.mean())
        if not mean < least:
            break
        least = mean
    codes = (tensor * scale + zero).round_().clamp_(*min_max)
    return codes, scale, zero

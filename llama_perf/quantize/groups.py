"""Scales of groups along K: what the group-wise schemes share.

Knows no layout of memory: everything here is (N, G, group size) or (N, G, 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llama_perf.errors import SpecError
from llama_perf.quantize.stretches import in_stretches


def check_group_size(group_size: object) -> None:
    """Raise SpecError unless it is a whole number of 1 or more."""
    if type(group_size) is not int or group_size < 1:
        raise SpecError("group_size", group_size, "allowed: a whole number, 1 or more")


def check_flag(field: str, value: object) -> None:
    """Raise SpecError unless `value` is a bool."""
    if type(value) is not bool:
        raise SpecError(field, value, "allowed: True, False")


def check_group(weight: Tensor, group_size: int, *, name: str) -> None:
    """Raise SpecError unless the group size divides K of the weight (N, K)."""
    rows, columns = weight.shape
    if columns % group_size:
        raise SpecError(
            "quantization",
            name,
            f"the group size {group_size} must divide K = {columns} of the weight"
            f" {(rows, columns)}; {fitting_groups(columns)}",
        )


def fitting_groups(columns: int, sizes: Sequence[int] | None = None) -> str:
    """Which group sizes divide K, in words; of `sizes` alone where they are given."""
    among = range(1, columns + 1) if sizes is None else sizes
    fitting = [str(size) for size in among if columns % size == 0]
    if fitting:
        return f"allowed: {', '.join(fitting)}"
    return f"none of {', '.join(map(str, among))} does"


def in_groups(weight: Tensor, group_size: int) -> Tensor:
    """float32 (N, G, group size) of a weight (N, K)."""
    groups: Tensor = weight.detach().float().unflatten(1, (-1, group_size))
    return groups


@in_stretches
def hqq_scale_and_zero(groups: Tensor, bits: int) -> tuple[Tensor, ...]:
    """Scale and zero of half-quadratic quantization, w = (c - zero) * scale.

    torchao's own search; Badri and Shaji (2023). Both float32 (N, G, 1). The third
    tensor says which groups it suits: its least step is 1 / 20000, too wide for a
    group whose values lie closer together.
    """
    from torchao.quantization.quant_primitives import (
        _choose_qparams_and_quantize_affine_hqq,
    )

    rows, count, size = groups.shape
    _, scale, zero, _ = _choose_qparams_and_quantize_affine_hqq(
        groups.flatten(1),
        nbits=bits,
        group_size=size,
        compute_dtype=torch.float32,
        device=str(groups.device),
        raw_output=True,
    )
    shape = (rows, count, 1)
    # Clones, since the search leaves inference tensors.
    scale, zero = scale.clone().view(shape), zero.clone().view(shape)
    span = groups.amax(2, keepdim=True) - groups.amin(2, keepdim=True)
    return scale, zero, scale <= span / (2**bits - 1) * 1.01

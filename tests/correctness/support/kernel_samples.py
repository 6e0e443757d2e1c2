"""Packed weights of every format with random codes, and what to compare them with."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llama_perf.kernels import attention, products
from llama_perf.kernels.packing import pack, to_lanes
from llama_perf.kernels.row_scaled import FORMATS as ROW_SCALED
from llama_perf.kernels.weight import OFFSET, PACKED, SPARSE, Packed

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Format:
    """A weight format; without a `kind` of zero it is row-scaled or sparse."""

    name: str
    bits: int
    group_size: int = 1
    kind: int = 0


FORMATS = (
    Format("int8", 8),
    Format("fp6", 6),
    Format("float8", 8),
    Format("int4-32", 4, 32, OFFSET),
    *(Format(f"uintx-{bits}-8", bits, 8, PACKED) for bits in range(1, 9)),
    Format("uintx-3-4", 3, 4, PACKED),
    Format("uintx-4-20", 4, 20, PACKED),
    Format("uintx-8-4", 8, 4, PACKED),
    Format("sparse", 6, 4),
)
ONE_OF_EACH = (*FORMATS[:4], FORMATS[-1])
"""A format of each operator."""
# The two places of a quad whose values are stored, the later one first.
PATTERNS = ((1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (3, 2))
# (N, K) of the linears of Llama-2-7B and Llama-3-8B, a 32nd of each; of the
# vocabulary, which is N of the output, a 256th.
LLAMA = (
    *((384, 128), (128, 128), (344, 128), (128, 344), (125, 128)),
    *((192, 128), (448, 128), (128, 448), (501, 128)),
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Half a unit in the last place of a result, and the rounding of sums in float32; a
# weight that is rounded to the activations' type before a product adds as much again.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def call(device: torch.device, operator: Any, *arguments: Any) -> Tensor:
    """What an operator of this project returns there; interpreted, its kernel does."""
    if INTERPRETED:
        ours: dict[Any, Any] = {products.packed_product: products.on_gpu}
        ours[attention.decode_attention] = attention.decode_on_gpu
        operator = ours.get(operator) or operator._backend_fns["cuda"]
    moved = (it.to(device) if isinstance(it, Tensor) else it for it in arguments)
    result: Tensor = operator(*moved)
    return result.cpu()


def arguments(x: Tensor, weight: Packed, *how: Any) -> tuple[Any, ...]:
    """Those of the operator: `how` is the dtype, and the scales of int8 tokens."""
    return x, *weight.tensors, weight.numbers, *how


def multiply(
    x: Tensor,
    weight: Packed,
    *how: Any,
    device: torch.device = CPU,
    operator: Any = products.packed_product,
) -> Tensor:
    """By the operator, on `device`."""
    return call(device, operator, *arguments(x, weight, *how))


def sample(
    format: Format, shape: tuple[int, int, int], dtype: torch.dtype
) -> tuple[Tensor, Packed]:
    """Tokens, and random codes, all of them possible; K is cut to full groups."""
    tokens, rows, columns = shape
    columns -= columns % format.group_size
    if format.name == "sparse":
        # All patterns of stored places, all values.
        quads = torch.randint(0, 6, (rows, columns // 4))
        places = torch.tensor(PATTERNS)[quads].flatten(1)
        values = torch.randint(0, 16, (rows, columns // 2))
        codes, groups = values | (places << 4), -(-columns // 128)
    else:
        codes = torch.randint(0, 2**format.bits, (rows, columns))
        groups = columns // format.group_size if format.kind else 1
    if format.name == "float8":
        # Not NaN, which no quantized weight has.
        codes -= (codes & 127 == 127).long()
    x = torch.randn(tokens, columns).to(dtype)
    scale = to_lanes(torch.rand((rows, groups)) * 0.01)
    words = pack(codes, format.bits)
    zeros = torch.randint(0, 2**format.bits, (rows, groups))
    how: dict[str, Any] = {"bits": format.bits}
    if format.name in ROW_SCALED:
        scale = zero = scale[:, 0]
        how["decode"] = ROW_SCALED[format.name].kind
    elif format.name == "sparse":
        scale = zero = scale.to(torch.float16)
        how["format"] = SPARSE
    else:
        zero = {
            PACKED: pack(zeros, format.bits),
            OFFSET: to_lanes((zeros - 8) * 0.001).to(torch.bfloat16),
        }[format.kind]
        packed = format.kind == PACKED
        scale = scale.to(torch.float16 if packed else torch.bfloat16)
        how |= {"group": format.group_size, "zero_kind": format.kind}
    return x, Packed(words, scale, zero, rows, columns, **how)


def dynamic_reference(x: Tensor, x_scale: Tensor, weight: Packed) -> Tensor:
    """The product of quantized tokens by the formula, with the sums in float64.

    Sums of int8 values are exact in float64.
    """
    ones = replace(weight, scale=torch.ones_like(weight.scale))
    values = products.dequantized(ones)
    row_scales: Tensor = weight.scale.flatten()[: weight.rows]
    return (x.double() @ values.double().T).float() * x_scale * row_scales


# A subnormal float32 may count as zero: that much times the sum of |x * code|.
_FLUSHED = 1e-33


def magnitude(x: Tensor, weight: Packed) -> Tensor:
    """The sum of the terms' magnitudes, which rounding is relative to."""
    return x.float().abs() @ products.dequantized(weight).abs().T


def assert_close(
    product: Tensor,
    x: Tensor,
    weight: Packed,
    rows: Sequence[int] | slice = slice(None),
) -> None:
    """`rows` of the weight are multiplied up to the rounding of the dtype."""
    assert product.dtype == x.dtype
    assert product.shape == (len(x), weight.rows)
    error = (product.float() - x.float() @ products.dequantized(weight).T).abs()
    allowed = ROUNDING[x.dtype] * magnitude(x, weight) + _FLUSHED
    worse = (error / allowed)[:, rows]
    assert (worse <= 1).all(), f"{worse.max():.2f} times what rounding explains"


# The first rows of a weight with special values.
ZERO_SCALE, SUBNORMAL_SCALE, INFINITE_SCALE, ZERO_CODES = range(4)


def with_special_rows(weight: Packed) -> Packed:
    """The same but for its first four rows."""
    scale, codes = weight.scale.clone(), weight.codes.clone()
    scale[0, ..., ZERO_SCALE] = 0
    scale[0, ..., SUBNORMAL_SCALE] = torch.finfo(scale.dtype).tiny / 4
    scale[0, ..., INFINITE_SCALE] = float("inf")
    zeros = torch.zeros((1, weight.columns), dtype=torch.int64)
    if weight.format == SPARSE:
        # A quad stores two places, not one twice.
        zeros = torch.tensor([[0, 1 << 4]]).repeat(1, zeros.shape[1] // 4)
    codes[0, :, ZERO_CODES] = pack(zeros, weight.bits)[0, :, 0]
    return replace(weight, scale=scale, codes=codes)


def assert_special(product: Tensor, x: Tensor, weight: Packed) -> None:
    """An infinite scale makes its own row infinite or NaN, and no other row."""
    assert not torch.isfinite(product[:, INFINITE_SCALE]).any()
    others = [row for row in range(weight.rows) if row != INFINITE_SCALE]
    assert_close(product, x, weight, others)

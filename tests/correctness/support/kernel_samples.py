"""Packed weights of every format with random codes, and what to compare them with."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llama_perf.kernels import products
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
# The two places of a quad whose values are stored.
PATTERNS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
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
        operator = operator._backend_fns["cuda"]
    moved = (it.to(device) if isinstance(it, Tensor) else it for it in arguments)
    result: Tensor = operator(*moved)
    return result.cpu()


@dataclass(frozen=True, slots=True)
class Sample:
    """A weight and its tokens `x`."""

    format: Format
    x: Tensor
    weight: Packed

    def with_weight(self, **changes: Any) -> "Sample":
        """The same with other codes, scales or zeros."""
        return replace(self, weight=replace(self.weight, **changes))

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Those of the operator."""
        return self.x, *self.weight.tensors, self.weight.numbers, self.x.dtype

    def product(self, device: torch.device = CPU) -> Tensor:
        """By the operator, on `device`."""
        return call(device, products.packed_product, *self.arguments)

    def by_function(self) -> Tensor:
        """By the function that may be an expression of one token."""
        return products.product(self.x, self.weight)

    def dequantized(self) -> Tensor:
        """The weight, float32 (rows, columns)."""
        return products.dequantized(self.weight)

    def magnitude(self) -> Tensor:
        """The sum of the terms' magnitudes, which rounding is relative to."""
        return self.x.float().abs() @ self.dequantized().abs().T

    def error(self, product: Tensor) -> Tensor:
        """How far off the product by the formula, in float32, another one is."""
        assert product.dtype == self.x.dtype
        assert product.shape == (len(self.x), self.weight.rows)
        return (product.float() - self.x.float() @ self.dequantized().T).abs()


def sample(format: Format, shape: tuple[int, int, int], dtype: torch.dtype) -> Sample:
    """Random codes, all of them possible; K is cut to full groups or quads."""
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
    return Sample(format, x, Packed(words, scale, zero, rows, columns, **how))


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


def assert_close(
    product: Tensor, sample: Sample, rows: Sequence[int] | slice = slice(None)
) -> None:
    """`rows` of the weight are multiplied up to the rounding of the dtype."""
    allowed = ROUNDING[product.dtype] * sample.magnitude() + _FLUSHED
    worse = (sample.error(product) / allowed)[:, rows]
    message = f"{sample.format.name}: more than rounding explains by"
    assert (worse <= 1).all(), f"{message} {worse.max():.2f}"


# The first rows of a weight with special values.
ZERO_SCALE, SUBNORMAL_SCALE, INFINITE_SCALE, ZERO_CODES = range(4)


def with_special_rows(sample: Sample) -> Sample:
    """The same but for its first four rows."""
    scale, codes = sample.weight.scale.clone(), sample.weight.codes.clone()
    scale[0, ..., ZERO_SCALE] = 0
    scale[0, ..., SUBNORMAL_SCALE] = torch.finfo(scale.dtype).tiny / 4
    scale[0, ..., INFINITE_SCALE] = float("inf")
    zeros = torch.zeros((1, sample.x.shape[1]), dtype=torch.int64)
    if sample.format.name == "sparse":
        # The value 0 is 8, and a quad stores two places, not one twice.
        zeros = torch.tensor([[8, 8 | 1 << 4]]).repeat(1, zeros.shape[1] // 4)
    codes[0, :, ZERO_CODES] = pack(zeros, sample.format.bits)[0, :, 0]
    return sample.with_weight(scale=scale, codes=codes)


def assert_special(product: Tensor, sample: Sample) -> None:
    """An infinite scale makes its own row infinite or NaN, and no other row."""
    assert not torch.isfinite(product[:, INFINITE_SCALE]).any()
    others = [row for row in range(sample.weight.rows) if row != INFINITE_SCALE]
    assert_close(product, sample, others)

"""Packed weights of every format with random codes, and what to compare them with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch._library.custom_ops import CustomOpDef

from llama_perf.kernels import grouped, row_scaled, sparse
from llama_perf.kernels.grouped import INTEGER, OFFSET, PACKED
from llama_perf.kernels.packing import pack, to_lanes
from llama_perf.kernels.row_scaled import RowScaled
from llama_perf.kernels.weight import Packed


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A weight format; without a `kind` of zero it is row-scaled or sparse."""

    name: str
    bits: int
    group_size: int = 0
    kind: int = 0

    @property
    def operator(self) -> str:
        """Its operator's name in `OPERATORS`."""
        return "grouped" if self.kind else self.name


FORMATS = (
    Format(name="int8", bits=8),
    Format(name="fp6", bits=6),
    Format(name="float8", bits=8),
    Format(name="int4-32", bits=4, group_size=32, kind=OFFSET),
    *(
        Format(name=f"uintx-{bits}-8", bits=bits, group_size=8, kind=PACKED)
        for bits in range(1, 9)
    ),
    Format(name="uintx-3-4", bits=3, group_size=4, kind=PACKED),
    Format(name="uintx-4-20", bits=4, group_size=20, kind=PACKED),
    Format(name="uintx-8-4", bits=8, group_size=4, kind=PACKED),
    Format(name="uintx-4-16-int32", bits=4, group_size=16, kind=INTEGER),
    Format(name="sparse", bits=6, group_size=128),
)
ROW_SCALED = {
    "int8": row_scaled.INT8,
    "fp6": row_scaled.FP6,
    "float8": row_scaled.FLOAT8,
}
# Each operator, and the function that calls it or, for one token, may replace it.
OPERATORS: dict[str, CustomOpDef] = {
    "int8": row_scaled.int8_weight_op,
    "fp6": row_scaled.fp6_weight_op,
    "float8": row_scaled.float8_weight_op,
    "sparse": sparse.sparse_weight_op,
    "grouped": grouped.grouped_weight_op,
}
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "int8": row_scaled.int8_weight,
    "fp6": row_scaled.fp6_weight,
    "float8": row_scaled.float8_weight,
    "sparse": sparse.sparse_weight,
    "grouped": grouped.grouped_weight,
}
ONE_OF_EACH = tuple(
    format
    for format in FORMATS
    if format.name in {"int8", "fp6", "float8", "int4-32", "sparse"}
)
"""A format of each operator."""
# The two places of a quad whose values are stored.
PATTERNS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
# (M, N, K): one token and several, rows and columns off the tiles' and words' sizes.
SHAPES = (
    (1, 16, 64),
    (1, 75, 160),
    (2, 33, 40),
    (3, 20, 200),
    (8, 48, 320),
    (9, 40, 80),
    (16, 17, 96),
    (17, 70, 160),
)
# (N, K) of the linears of Llama-2-7B and Llama-3-8B, a 32nd of each; of the
# vocabulary, which is N of the output, a 256th.
LLAMA = (
    (384, 128),
    (128, 128),
    (344, 128),
    (128, 344),
    (125, 128),
    (192, 128),
    (448, 128),
    (128, 448),
    (501, 128),
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Half a unit in the last place of a result, and the rounding of sums in float32; a
# weight that is rounded to the activations' type before a product adds as much again.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A weight and its tokens `x`."""

    format: Format
    x: Tensor
    weight: Packed

    def on(self, device: torch.device) -> Sample:
        """The same on another device."""
        weight = self.weight
        moved = self.with_weight(
            codes=weight.codes.to(device),
            scale=weight.scale.to(device),
            zero=weight.zero.to(device),
        )
        return replace(moved, x=self.x.to(device))

    def with_weight(self, **changes: Any) -> Sample:
        """The same with other codes, scales or zeros."""
        return replace(self, weight=replace(self.weight, **changes))

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Those of the operator."""
        weight = self.weight
        parts = (self.x, weight.codes, weight.scale)
        if self.format.kind:
            return *parts, weight.zero, weight.rows, weight.bits, weight.zero_kind
        return *parts, weight.rows

    def product(self) -> Tensor:
        """By the operator."""
        product: Tensor = OPERATORS[self.format.operator](*self.arguments)
        return product

    def by_function(self) -> Tensor:
        """By the function that may be an expression of one token."""
        return FUNCTIONS[self.format.operator](*self.arguments)

    def dequantized(self) -> Tensor:
        """The weight, float32 (rows, columns)."""
        weight = self.weight
        if self.format.kind:
            return grouped.dequantized(weight)
        parts = (weight.codes, weight.scale, weight.rows, weight.columns)
        if self.format.name == "sparse":
            return sparse.dequantized(*parts)
        return ROW_SCALED[self.format.name].dequantized(*parts)

    def reference(self) -> Tensor:
        """The product by the formula, in float32."""
        return self.x.float() @ self.dequantized().T

    def magnitude(self) -> Tensor:
        """The sum of the terms' magnitudes, which rounding is relative to."""
        return self.x.float().abs() @ self.dequantized().abs().T


def sample(
    format: Format, shape: tuple[int, int, int], dtype: torch.dtype, *, seed: int = 0
) -> Sample:
    """Random codes, all of them possible; K is cut to full groups or quads."""
    tokens, rows, columns = shape
    draw = torch.Generator().manual_seed(seed)
    if format.name == "sparse":
        columns -= columns % 4
        weight = _sparse_weight(format, rows, columns, draw)
        x = torch.randn(tokens, columns, generator=draw).to(dtype)
        return Sample(format=format, x=x, weight=weight)
    if format.kind:
        columns -= columns % format.group_size
    codes = torch.randint(0, 2**format.bits, (rows, columns), generator=draw)
    if format.name == "float8":
        # Not NaN, which no quantized weight has.
        codes -= (codes & 127 == 127).long()
    x = torch.randn(tokens, columns, generator=draw).to(dtype)
    words = pack(codes, format.bits)
    if format.kind:
        weight = _grouped_weight(format, words, rows, columns, draw)
    else:
        scale = to_lanes(torch.rand(rows, generator=draw) * 0.01)
        packed = ROW_SCALED[format.name].packed
        weight = packed(words, scale, rows=rows, columns=columns)
    return Sample(format=format, x=x, weight=weight)


def _grouped_weight(
    format: Format, words: Tensor, rows: int, columns: int, draw: Generator
) -> Packed:
    groups = (rows, columns // format.group_size)
    scale = to_lanes(torch.rand(groups, generator=draw) * 0.01)
    zeros = torch.randint(0, 2**format.bits, groups, generator=draw)
    if format.kind == PACKED:
        zero = pack(zeros, format.bits)
    elif format.kind == INTEGER:
        zero = to_lanes(zeros.to(torch.int32))
    else:
        zero = to_lanes((zeros - 8) * 0.001).to(torch.bfloat16)
    return grouped.packed_weight(
        words,
        scale.to(torch.float16 if format.kind == PACKED else torch.bfloat16),
        zero,
        rows,
        columns,
        bits=format.bits,
        kind=format.kind,
    )


def _sparse_weight(format: Format, rows: int, columns: int, draw: Generator) -> Packed:
    """All patterns of stored places, all values."""
    quads = columns // 4
    chosen = torch.randint(0, len(PATTERNS), (rows, quads), generator=draw)
    places = torch.tensor(PATTERNS)[chosen].flatten(1)
    values = torch.randint(0, 16, (rows, 2 * quads), generator=draw)
    scale = torch.rand((rows, sparse.groups(columns)), generator=draw) * 0.01
    codes = pack(values | (places << 4), format.bits)
    scale = to_lanes(scale).to(torch.float16)
    return sparse.packed_weight(codes, scale, rows, columns)


def dynamic_reference(
    format: RowScaled,
    x: Tensor,
    x_scale: Tensor,
    codes: Tensor,
    scale: Tensor,
    rows: int,
) -> Tensor:
    """The product of quantized tokens by the formula, with the sums in float64.

    Sums of int8 values are exact in float64.
    """
    weight = format.dequantized(codes, torch.ones_like(scale), rows, x.shape[1])
    sums = (x.double() @ weight.double().T).float()
    return sums * x_scale * scale.flatten()[:rows]


def assert_close(product: Tensor, sample: Sample) -> None:
    """`product` is right up to the rounding of its dtype."""
    assert product.dtype == sample.x.dtype
    assert product.shape == (len(sample.x), sample.weight.rows)
    allowed = ROUNDING[product.dtype] * sample.magnitude()
    error = (product.float() - sample.reference()).abs()
    worst = (error / allowed.clamp(min=1e-30)).max().item()
    assert worst <= 1, f"{sample.format.name}: {worst:.2f} times what rounding explains"


# The first rows of a weight with special values.
ZERO_SCALE, SUBNORMAL_SCALE, INFINITE_SCALE, ZERO_CODES = range(4)
# A subnormal float32 may count as zero: that much times the sum of |x * code|.
_FLUSHED = 1e-33


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
    allowed = ROUNDING[product.dtype] * sample.magnitude() + _FLUSHED
    error = (product.float() - sample.reference()).abs()
    assert (error[:, others] <= allowed[:, others]).all(), sample.format.name

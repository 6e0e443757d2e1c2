"""Packed weights of every format with random codes, and what to compare them with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from llama_perf.kernels import grouped as grouped_weight
from llama_perf.kernels import row_scaled, weight
from llama_perf.kernels import sparse as sparse_weight
from llama_perf.kernels.packing import pack, to_lanes

INTEGER, PACKED, OFFSET = (
    grouped_weight.INTEGER,
    grouped_weight.PACKED,
    grouped_weight.OFFSET,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A weight format; without a group size it has one scale for each row."""

    name: str
    bits: int
    group_size: int = 0
    kind: int = 0


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
# One of each operator.
OPERATORS = tuple(
    format
    for format in FORMATS
    if format.name in {"int8", "fp6", "float8", "int4-32", "sparse"}
)
# The two places of a quad that are kept.
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
class Packed:
    """A weight of `rows` and its tokens `x`."""

    format: Format
    x: Tensor
    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    rows: int

    def on(self, device: torch.device) -> Packed:
        """The same on another device."""
        zero = None if self.zero is None else self.zero.to(device)
        return Packed(
            format=self.format,
            x=self.x.to(device),
            codes=self.codes.to(device),
            scale=self.scale.to(device),
            zero=zero,
            rows=self.rows,
        )

    def packed(self) -> weight.Packed:
        """The weight as the kernels on CUDA take it."""
        parts, columns = (self.codes, self.scale), self.x.shape[1]
        if self.format.name == "sparse":
            return sparse_weight.packed_weight(*parts, self.rows, columns)
        if self.zero is None:
            format = ROW_SCALED[self.format.name]
            return format.packed(*parts, rows=self.rows, columns=columns)
        return grouped_weight.packed_weight(
            *parts,
            self.zero,
            self.rows,
            columns,
            bits=self.format.bits,
            kind=self.format.kind,
        )

    def call(
        self, grouped: Callable[..., Tensor], others: dict[str, Callable[..., Tensor]]
    ) -> Tensor:
        """Call the operator of this format: `grouped`, or that of its name."""
        if self.zero is None:
            operator = others[self.format.name]
            return operator(self.x, self.codes, self.scale, self.rows)
        parts = (self.x, self.codes, self.scale, self.zero, self.rows)
        return grouped(*parts, self.format.bits, self.format.kind)

    def product(self) -> Tensor:
        """By the operator."""
        others: dict[str, Callable[..., Tensor]] = {
            "int8": row_scaled.int8_weight_op,
            "fp6": row_scaled.fp6_weight_op,
            "float8": row_scaled.float8_weight_op,
            "sparse": sparse_weight.sparse_weight_op,
        }
        return self.call(grouped_weight.grouped_weight_op, others)

    def reference(self) -> Tensor:
        """By the formula, in float32."""
        others = {
            "int8": row_scaled.INT8.reference,
            "fp6": row_scaled.FP6.reference,
            "float8": row_scaled.FLOAT8.reference,
            "sparse": sparse_weight.reference,
        }
        return self.call(grouped_weight.reference, others)

    def magnitude(self) -> Tensor:
        """The sum of the terms' magnitudes, in which rounding is counted."""
        columns = self.x.shape[1]
        others = {
            "int8": row_scaled.INT8.dequantized,
            "fp6": row_scaled.FP6.dequantized,
            "float8": row_scaled.FLOAT8.dequantized,
            "sparse": sparse_weight.dequantized,
        }
        if self.zero is None:
            one = others[self.format.name]
            wide = one(self.codes, self.scale, self.rows, columns)
        else:
            wide = grouped_weight.dequantized(
                self.codes,
                self.scale,
                self.zero,
                self.rows,
                columns,
                bits=self.format.bits,
                kind=self.format.kind,
            )
        return self.x.float().abs() @ wide.abs().T


def sample(
    format: Format, shape: tuple[int, int, int], dtype: torch.dtype, *, seed: int = 0
) -> Packed:
    """Random codes, all of them possible; K is cut to whole groups."""
    tokens, rows, columns = shape
    draw = torch.Generator().manual_seed(seed)
    if format.name == "sparse":
        return _sparse_sample(format, shape, dtype, draw)
    if format.group_size:
        columns -= columns % format.group_size
    codes = torch.randint(0, 2**format.bits, (rows, columns), generator=draw)
    if format.name == "float8":
        # Not NaN, which no quantized weight has.
        codes -= (codes & 127 == 127).long()
    x = torch.randn(tokens, columns, generator=draw).to(dtype)
    if not format.group_size:
        scale = to_lanes(torch.rand(rows, generator=draw) * 0.01)
        packed = pack(codes, format.bits)
        return Packed(
            format=format, x=x, codes=packed, scale=scale, zero=None, rows=rows
        )
    shape_of_groups = (rows, columns // format.group_size)
    scale = to_lanes(torch.rand(shape_of_groups, generator=draw) * 0.01)
    zeros = torch.randint(0, 2**format.bits, shape_of_groups, generator=draw)
    if format.kind == PACKED:
        zero = pack(zeros, format.bits)
    elif format.kind == INTEGER:
        zero = to_lanes(zeros.to(torch.int32))
    else:
        zero = to_lanes((zeros - 8) * 0.001).to(torch.bfloat16)
    return Packed(
        format=format,
        x=x,
        codes=pack(codes, format.bits),
        scale=scale.to(torch.float16 if format.kind == PACKED else torch.bfloat16),
        zero=zero,
        rows=rows,
    )


def _sparse_sample(
    format: Format, shape: tuple[int, int, int], dtype: torch.dtype, draw: Generator
) -> Packed:
    """All patterns of kept places, all values; K cut to whole quads."""
    tokens, rows, columns = shape
    quads = columns // 4
    chosen = torch.randint(0, len(PATTERNS), (rows, quads), generator=draw)
    places = torch.tensor(PATTERNS)[chosen].flatten(1)
    values = torch.randint(0, 16, (rows, 2 * quads), generator=draw)
    scale = torch.rand((rows, sparse_weight.groups(4 * quads)), generator=draw) * 0.01
    return Packed(
        format=format,
        x=torch.randn(tokens, 4 * quads, generator=draw).to(dtype),
        codes=pack(values | (places << 4), format.bits),
        scale=to_lanes(scale).to(torch.float16),
        zero=None,
        rows=rows,
    )


def assert_close(found: Tensor, packed: Packed) -> None:
    """`found` is the product up to the rounding of its dtype."""
    assert found.dtype == packed.x.dtype
    assert found.shape == (len(packed.x), packed.rows)
    allowed = ROUNDING[found.dtype] * packed.magnitude()
    error = (found.float() - packed.reference()).abs()
    worst = (error / allowed.clamp(min=1e-30)).max().item()
    assert worst <= 1, f"{packed.format.name}: {worst:.2f} times what rounding explains"


# The first rows of a weight with special values.
ZERO_SCALE, SUBNORMAL_SCALE, INFINITE_SCALE, ZERO_CODES = range(4)
# A subnormal float32 may count as zero: that much times the sum of |x * code|.
_FLUSHED = 1e-33


def with_special_rows(packed: Packed) -> Packed:
    """The same but for its first four rows."""
    scale, codes = packed.scale.clone(), packed.codes.clone()
    scale[0, ..., ZERO_SCALE] = 0
    scale[0, ..., SUBNORMAL_SCALE] = torch.finfo(scale.dtype).tiny / 4
    scale[0, ..., INFINITE_SCALE] = float("inf")
    zeros = torch.zeros((1, packed.x.shape[1]), dtype=torch.int64)
    if packed.format.name == "sparse":
        # The value 0 is 8, and a quad keeps two places, not one twice.
        zeros = torch.tensor([[8, 8 | 1 << 4]]).repeat(1, zeros.shape[1] // 4)
    codes[0, :, ZERO_CODES] = pack(zeros, packed.format.bits)[0, :, 0]
    return replace(packed, scale=scale, codes=codes)


def assert_special(found: Tensor, packed: Packed) -> None:
    """An infinite scale makes its own row infinite or NaN, and no other row."""
    assert not torch.isfinite(found[:, INFINITE_SCALE]).any()
    others = [row for row in range(packed.rows) if row != INFINITE_SCALE]
    allowed = ROUNDING[found.dtype] * packed.magnitude() + _FLUSHED
    error = (found.float() - packed.reference()).abs()
    assert (error[:, others] <= allowed[:, others]).all(), packed.format.name

"""Keys and values in one byte: x = c * s, one scale for each token and head.

int8: s = absmax / 127, c rounded. fp8: s = absmax / 448, c in e4m3 (Micikevicius et
al., "FP8 Formats for Deep Learning", 2022); without a scale small values would be
subnormal and large ones lost. The scale is a bfloat16: values are divided by the
rounded scale, so rounding it costs hardly any exactness; it has float32's range; and
with 2 bytes for 64 codes a cache takes 0.516 of bfloat16's bytes. The codes' dtype is
their kind: int8 for int8, uint8 for the bits of fp8, since compilers for some GPUs
cannot convert float8. A float16 with those bits moved up by 7 is the value / 256, also
of a subnormal one.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Values that are widened to float32 at a time: 4 MB.
WIDENED = 1 << 20
INT8, FP8 = torch.int8, torch.uint8
SCALE = torch.bfloat16
_SMALLEST_SCALE = torch.finfo(SCALE).tiny
# The largest code, and what a decoded code has to be multiplied by.
_LARGEST = {INT8: 127.0, FP8: 448.0}
UNIT = {INT8: 1.0, FP8: 256.0}


class CachedTensors(NamedTuple):
    """Keys and values (B, H, S, D), or their codes with scales (B, H, S)."""

    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None

    @property
    def kind(self) -> torch.dtype | None:
        """The dtype of the codes, None where there are none."""
        return None if self.k_scale is None else self.k.dtype

    @property
    def pointers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Them as kernels take them: scales that are not there are not read either."""
        k_scale = self.k if self.k_scale is None else self.k_scale
        v_scale = self.v if self.v_scale is None else self.v_scale
        return self.k, self.v, k_scale, v_scale

    def map(self, change: Callable[[Tensor], Tensor]) -> "CachedTensors":
        """The same after a change to each tensor."""
        scales = (None if scale is None else change(scale) for scale in self[2:])
        return CachedTensors(change(self.k), change(self.v), *scales)

    def of(self, rows: slice) -> "CachedTensors":
        """Views of some sequences, or after `by_head` of some heads."""
        return self.map(lambda tensor: tensor[rows])

    def by_head(self, end: int, start: int = 0) -> "CachedTensors":
        """Views (B * H, L, D) of the positions from `start` to before `end`."""
        return self.map(lambda tensor: tensor.flatten(0, 1)[:, start:end])

    def dequantized(
        self, positions: slice, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (N, L, D) of `positions` after `by_head`, from codes."""
        k, v, k_scale, v_scale = (tensor[:, positions] for tensor in self.pointers)
        keys = dequantized_by_positions(k, k_scale, dtype)
        return keys, dequantized_by_positions(v, v_scale, dtype)


def quantize(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes of `x` (..., D), in `kind`, and their scales (...) in bfloat16."""
    wide = x.float()
    scale = wide.abs().amax(-1) / _LARGEST[kind]
    # Rounded up to a bfloat16, so that no code is beyond the largest; as integers,
    # since a compiler takes a cast there and back for none.
    bits = (scale.clamp(min=_SMALLEST_SCALE).view(torch.int32) + 0xFFFF) & -0x10000
    scale = bits.view(torch.float32)
    code = wide / scale.unsqueeze(-1)
    codes = code.round().to(INT8) if kind == INT8 else _to_bits(code)
    return codes, scale.to(SCALE)


def _to_bits(code: Tensor) -> Tensor:
    # To the nearest of 3 mantissa bits, ties to even; the exponent's bias is 7 instead
    # of 127. Below 2**-6 codes are multiples of 2**-9.
    bits = code.view(torch.int32)
    size = bits & 0x7FFFFFFF
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - ((127 - 7) << 3)
    small = (code.abs() * 512).round().to(torch.int32)
    size = torch.where(code.abs() < 2.0**-6, small, normal)
    return (size | ((bits >> 24) & 0x80)).to(FP8)


def decoded(codes: Tensor, room: Tensor | None = None) -> Tensor:
    """Codes as float32, still to be multiplied by `UNIT` and their scale.

    Written into `room`, float32 of the same shape, unless it is None.
    """
    out = torch.empty(codes.shape, device=codes.device) if room is None else room
    if codes.dtype == INT8:
        return out.copy_(codes)
    # The sign stands in bit 14 too once the byte is widened with it.
    bits = codes.view(torch.int8).to(torch.int16)
    bits = bits.bitwise_left_shift_(7).bitwise_and_(-0x4001)
    return out.copy_(bits.view(torch.float16))


def dequantized(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The values, (..., D) in `dtype`, of codes and their scales (...)."""
    wide = scale.float().mul(UNIT[codes.dtype]).unsqueeze(-1)
    return decoded(codes).mul_(wide).to(dtype)


def dequantized_by_positions(
    codes: Tensor, scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """As `dequantized` of (N, L, D), with little memory besides the result's.

    A few positions at a time. Not for code that is being compiled: a compiler would
    unroll the loop.
    """
    heads, length, width = codes.shape
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    step = max(WIDENED // max(heads * width, 1), 1)
    for start in range(0, length, step):
        some = slice(start, start + step)
        out[:, some] = dequantized(codes[:, some], scale[:, some], dtype)
    return out

"""Codes of a weight with one scale for each output channel.

s[n] = amax over k of |w[n, k]| / the largest value of a code; the codes are those
nearest to w / s. The scale is in float32 whatever the weight's dtype, and a row of
zeros stays zeros.

    int8wo           integers of -127 to 127
    fp6              e3m2 floats of six bits, up to 28: 0.75 byte a weight
    float8wo         e4m3 floats of eight bits, up to 448, as torchao has them
    int8dq           as int8wo; activations in int8 with one scale for each token
    float8dq-row     as float8wo; activations in e4m3 with one scale for each token
    float8dq-tensor  one scale for the whole weight, one for all tokens of a call
"""

from typing import ClassVar

import torch
from torch import Tensor

from llama_perf.devices.ranks import max_over_ranks
from llama_perf.kernels.packing import to_lanes
from llama_perf.kernels.row_scaled import FLOAT8, FP6, INT8, RowScaled
from llama_perf.kernels.weight import Activations, Packed
from llama_perf.quantize.grouped import in_stretches, largest
from llama_perf.quantize.packed_tensor import PackedTensor
from llama_perf.rows.schemes import Scheme


@in_stretches
def _encoded(
    weight: Tensor, kind: RowScaled, by_row: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Codes (N, K) and scales (N,), of the peaks `by_row`, or of each row's own."""
    wide = weight.float()
    peaks = wide.abs().amax(1) if by_row is None else by_row
    # No scale is 0 or subnormal: a row of zeros gets codes of zero, and a row of
    # subnormal values rounds to zero.
    scale = (peaks / kind.largest).clamp(min=torch.finfo(torch.float32).tiny)
    return kind.encode(wide / scale.unsqueeze(1)), scale


class RowScaledWeight(PackedTensor):
    """Words (B, W, 16) of codes and float32 scales (B, 16).

    A subclass says in `format` what a code is, and in `activations` whether they are
    rounded.
    """

    format: ClassVar[RowScaled]
    activations: Activations = "kept"

    @classmethod
    def from_float(
        cls, weight: Tensor, scheme: Scheme, cut: str | None = None
    ) -> "RowScaledWeight":
        weight, peaks = weight.detach(), None
        if scheme.name.endswith("-tensor"):
            peak = largest(weight).float()
            peaks = (max_over_ranks(peak) if cut else peak).expand(len(weight))
        elif cut == "columns":
            # The other ranks have the rest of each row.
            peaks = max_over_ranks(largest(weight, dim=1).float())
        codes, scale = _encoded(weight, cls.format, by_row=peaks)
        packed = cls.format.pack(codes)
        return cls(packed, to_lanes(scale), *weight.shape, weight.dtype)

    def packed(self) -> Packed:
        parts = (self.codes, self.scale, self.scale, self.rows, self.columns)
        return Packed(
            *parts,
            bits=self.format.bits,
            decode=self.format.kind,
            activations=self.activations,
        )


class Int8Weight(RowScaledWeight, families=("int8wo",)):
    """int8 codes, as unsigned bytes of the words."""

    format = INT8


class Fp6Weight(RowScaledWeight, families=("fp6",)):
    """fp6 codes, in planes of 4 and 2 bits."""

    format = FP6


class Float8Weight(RowScaledWeight, families=("float8wo",)):
    """float8 codes, as bytes of the words."""

    format = FLOAT8


class Int8DynamicWeight(Int8Weight, families=("int8dq",)):
    """The same codes for activations in int8."""

    activations = "int8"

    def laid_out_for(self, device: torch.device) -> "Int8DynamicWeight":
        """See `PackedTensor`: words for all; older models were saved in int8 rows."""
        del device
        if self.codes.dtype != torch.int8:
            return self
        # `pack` masks the bytes, since a word has no room for a sign.
        attributes = (self.rows, self.columns, self.activation_dtype)
        return Int8DynamicWeight(INT8.pack(self.codes), self.scale, *attributes)


class Float8DynamicWeight(Float8Weight, families=("float8dq-row", "float8dq-tensor")):
    """float8 words (B, W, 16) and float32 scales (B, 16), all alike if per tensor."""

    tensor_attribute_names: ClassVar = [
        "granularity",
        *PackedTensor.tensor_attribute_names,
    ]
    granularity: str

    @classmethod
    def from_float(
        cls, weight: Tensor, scheme: Scheme, cut: str | None = None
    ) -> "Float8DynamicWeight":
        packed = Float8Weight.from_float(weight, scheme, cut)
        granularity = scheme.name.removeprefix("float8dq-")
        return cls(packed.codes, packed.scale, granularity, *weight.shape, weight.dtype)

    @property
    def scheme_name(self) -> str:
        return f"float8dq-{self.granularity}"

    @property
    def activations(self) -> Activations:  # type: ignore[override]
        """Rounded to float8."""
        return "float8-tensor" if self.granularity == "tensor" else "float8-row"

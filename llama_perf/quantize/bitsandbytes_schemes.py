"""bitsandbytes' schemes, by the operators that its own linear layers call.

    nf4, fp4   four bits with a float32 scale for each 64 weights, as `Linear4bit` with
               its defaults: the codes of a block are those nearest to w / amax |w|
    int8dq     weights in int8 with one scale for each row, activations in int8 with one
               for each token: `Linear8bitLt` with the threshold 0
    llm-int8   the same, but columns in which an activation is 6 or more stay in 16
               bits: `Linear8bitLt` with the threshold of transformers' default

Versions 0.50 on. A CPU with bfloat16 in AVX-512 multiplies four bits in bfloat16,
whatever the activations' dtype; others write the whole weight out for each product.
"""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torchao.core.config import AOBaseConfig

from llama_perf.quantize.libraries import import_library
from llama_perf.quantize.library_tensor import LibraryConfig, LibraryTensor
from llama_perf.quantize.quantized_tensor import QuantizedTensor
from llama_perf.quantize.registry import register
from llama_perf.rows.schemes import Scheme

LIBRARY = "bitsandbytes"
BLOCK = 64
"""Weights that share a scale."""
OUTLIER = 6.0
"""An activation from which its column stays in 16 bits."""
# Rows that its fast product on a CPU takes at a time.
_CPU_ROWS = 32


class FourBitWeight(LibraryTensor):
    """Codes, two in a byte (N * K / 2, 1), and float32 scales (N * K / 64)."""

    library = LIBRARY
    tensor_attribute_names: ClassVar = ["kind", *QuantizedTensor.tensor_attribute_names]
    kind: str

    def product(self, x: Tensor) -> Tensor:
        shape = [self.rows, self.columns]
        out: Tensor = torch.ops.bitsandbytes.gemm_4bit.default(
            x, self.codes, shape, self.scale, BLOCK, self.kind
        )
        return out

    def dequantize(self) -> Tensor:
        out: Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(
            self.codes,
            self.scale,
            BLOCK,
            self.kind,
            [self.rows, self.columns],
            self.activation_dtype,
        )
        return out


class CpuFourBitWeight(LibraryTensor):
    """Codes (N, K / 2) as the fast product of a CPU reads them.

    Scales are bfloat16 (K / 64, N); `table`, float32 (16,), has the value of each code.
    """

    library = LIBRARY
    tensor_data_names: ClassVar = ["codes", "scale", "table"]
    table: Tensor

    @property
    def product_dtype(self) -> torch.dtype:
        return torch.bfloat16

    def product(self, x: Tensor) -> Tensor:
        shape = [self.rows, self.columns]
        out: Tensor = torch.ops.bitsandbytes.gemv_4bit.default(
            x, self.codes, shape, self.scale, self.table, BLOCK
        )
        return out

    def dequantize(self) -> Tensor:
        # Of 32 rows and two columns the 64 codes, row by row, are 32 bytes: the first
        # half is their low bits.
        units = self.codes.view(-1, self.columns // 2, _CPU_ROWS)
        pairs = torch.cat((units & 15, units >> 4), -1).unflatten(-1, (_CPU_ROWS, 2))
        codes = pairs.transpose(1, 2).reshape(self.rows, self.columns)
        scales = self.scale.T.float().repeat_interleave(BLOCK, 1)
        return (self.table[codes.long()] * scales).to(self.activation_dtype)


class Int8Weight(LibraryTensor):
    """int8 codes (N, K) and the float32 peak (N,) of each row, which is its scale.

    `threshold` is that of `Linear8bitLt`, 0 for none.
    """

    library = LIBRARY
    tensor_attribute_names: ClassVar = [
        "threshold",
        *QuantizedTensor.tensor_attribute_names,
    ]
    threshold: float

    def product(self, x: Tensor) -> Tensor:
        operators = torch.ops.bitsandbytes
        codes, peaks, outliers = operators.int8_vectorwise_quant.default(
            x.to(torch.float16), self.threshold
        )
        out: Tensor
        if self.threshold == 0:
            out = operators.int8_scaled_mm.default(
                codes, self.codes, peaks, self.scale, bias=None, dtype=x.dtype
            )
        else:
            out, _ = operators.int8_mixed_scaled_mm.default(
                x, codes, self.codes, peaks, self.scale, outliers, None
            )
        return out

    def dequantize(self) -> Tensor:
        wide = self.codes.float() * (self.scale / 127).unsqueeze(1)
        return wide.to(self.activation_dtype)


@register("nf4", "fp4", kernels=LIBRARY)
def four_bits(scheme: Scheme, *_: object) -> AOBaseConfig:
    """Weights in four bits, with the value of a code from a table."""
    import_library(LIBRARY)
    return LibraryConfig(partial(_four_bits, kind=scheme.family))


@register("int8dq", "llm-int8", kernels=LIBRARY)
def int8(scheme: Scheme, *_: object) -> AOBaseConfig:
    """Weights and activations in int8."""
    import_library(LIBRARY)
    threshold = OUTLIER if scheme.family == "llm-int8" else 0.0
    return LibraryConfig(partial(_int8, threshold=threshold))


def _four_bits(weight: Tensor, *, kind: str) -> LibraryTensor:
    functional = import_library(LIBRARY).functional
    rows, columns = weight.shape
    codes, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type=kind)
    attributes = (rows, columns, weight.dtype)
    # As `Linear4bit` does with its first tokens.
    fast = weight.device.type == "cpu" and functional.has_avx512bf16()
    if fast and rows % _CPU_ROWS == 0 and columns % BLOCK == 0:
        codes, state = functional._convert_weight_packed_for_cpu(codes, state)
        return CpuFourBitWeight(codes, state.absmax, state.code, *attributes)
    return FourBitWeight(codes, state.absmax, kind, *attributes)


def _int8(weight: Tensor, *, threshold: float) -> LibraryTensor:
    functional = import_library(LIBRARY).functional
    codes, peaks, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
    return Int8Weight(codes, peaks, threshold, *weight.shape, weight.dtype)

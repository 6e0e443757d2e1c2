"""float8dq: weights and activations as e4m3 floats of eight bits.

`float8dq-row`: weights as in float8wo, one scale for each token. `float8dq-tensor`: one
scale for the whole weight, one for all tokens of a call.
"""

from typing import ClassVar

from torch import Tensor

from llama_perf.kernels.float8_dynamic import float8_dynamic
from llama_perf.quantize.packed_tensor import PackedTensor
from llama_perf.quantize.row_scaled import Float8Weight
from llama_perf.rows.schemes import Scheme


class Float8DynamicWeight(Float8Weight, families=("float8dq-row", "float8dq-tensor")):
    """float8 words (B, W, 16) and float32 scales (B, 16), all alike if per tensor."""

    tensor_attribute_names: ClassVar = [
        "granularity",
        *PackedTensor.tensor_attribute_names,
    ]
    granularity: str

    @classmethod
    def from_float(cls, weight: Tensor, scheme: Scheme) -> "Float8DynamicWeight":
        """See `PackedTensor.from_float`."""
        packed = Float8Weight.from_float(weight, scheme)
        granularity = scheme.name.removeprefix("float8dq-")
        return cls(packed.codes, packed.scale, granularity, *weight.shape, weight.dtype)

    def matmul(self, x: Tensor) -> Tensor:
        """See `PackedTensor.matmul`."""
        per_tensor = self.granularity == "tensor"
        return float8_dynamic(
            x, self.codes, self.scale, self.rows, per_tensor=per_tensor
        )

    # The fused kernels do not round activations to float8.
    packed = PackedTensor.packed

"""A module with the interface of gemlite 0.6, as far as rows use it, on the CPU.

Its layouts and the numbers of its operator are what gemlite 0.6.0.post2 gave. It has no
kernel: its operator multiplies with the weights that it decodes in its own way.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

# Numbers by which gemlite calls dtypes.
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_FLOAT8, _INT8, _INT32 = 3, 4, 6


class Linear:
    """What its helpers make."""

    def __init__(self, parts: Sequence[Tensor], numbers: Sequence[int]) -> None:
        self.parts, self.numbers = [*parts, torch.tensor(0.0)], list(numbers)

    def get_tensor_args(self) -> list[Tensor]:
        return self.parts

    def get_meta_args(self) -> list[int]:
        return self.numbers


class EightBits:
    """`A16W8_INT8` and its like, by what differs."""

    def __init__(self, kind: torch.dtype, *, dynamic: bool) -> None:
        self.kind, self.dynamic = kind, dynamic

    def __call__(self, *, device: torch.device, dtype: torch.dtype) -> Any:
        def from_weights(weight: Tensor) -> Linear:
            is_float = self.kind.is_floating_point
            most = torch.finfo(self.kind).max if is_float else 127
            least = -most if is_float else -128
            wide = weight.float()
            scales = (wide.abs().amax(dim=1, keepdim=True) / most).clamp_(min=1e-6)
            codes = (wide / scales).clamp_(least, most)
            codes = (codes if is_float else codes.round_()).to(self.kind)
            rows, columns = weight.shape
            if columns % 32:
                raise NotImplementedError(f"Invalid input shapes: {columns} , {rows}.")
            ours = _DTYPES[dtype]
            computed = (_FLOAT8 if is_float else _INT8) if self.dynamic else ours
            sums = _INT32 if self.dynamic and not is_float else 0
            modes = (3, 0) if self.dynamic else (0, 2)
            numbers = [int(self.dynamic), 8, columns, 255, 1, computed, ours, sums, 0]
            parts = [codes.t(), scales.t().contiguous(), torch.empty(1, 0).int()]
            return Linear(parts, [*numbers, *modes, 0])

        assert device.type == "cpu"
        return SimpleNamespace(from_weights=from_weights)


class A16Wn:
    """Codes that others found, packed into words along K."""

    def __init__(self, *, device: torch.device, dtype: torch.dtype) -> None:
        assert device.type == "cpu"
        self.dtype = dtype

    def from_weights(
        self, codes: Tensor, scales: Tensor, zeros: Tensor, bits: int, group: int
    ) -> Linear:
        assert codes.dtype == torch.uint8
        rows, columns = codes.shape
        per_word = 32 // bits
        words = torch.zeros(rows, columns // per_word, dtype=torch.int32)
        for column in range(columns):
            shifted = codes[:, column].int() << (column % per_word * bits)
            words[:, column // per_word] |= shifted
        scales, zeros = scales.to(self.dtype), zeros.to(self.dtype)
        mode = 3
        if scales.numel() != rows:
            zeros, mode = (-zeros.float() * scales.float()).to(self.dtype), 4
        parts = [part.t().contiguous() for part in (words, scales, zeros)]
        ours = _DTYPES[self.dtype]
        numbers = [0, bits, group, 2**bits - 1, per_word, ours, ours, 0, ours]
        return Linear(parts, [*numbers, 0, mode, 1])


@torch.library.custom_op("gemlite::forward_functional", mutates_args=())
def forward_functional(
    x: Tensor,
    bias: Tensor | None,
    tensor_args: list[Tensor],
    meta_args: list[int],
    matmul_type: int = -1,
) -> Tensor:
    """The product of `x` (T, K), of a linear with these arguments."""
    codes, scale, zero, _meta_scale = tensor_args
    mask, per_word, mode = (meta_args[at] for at in (3, 4, 10))
    assert bias is None
    assert matmul_type == -1
    columns = []
    for column in range(x.shape[1]):
        word = codes[column // per_word]
        if per_word > 1:
            word = (word >> (column % per_word * meta_args[1])) & mask
        group = column * len(scale) // x.shape[1]
        added = zero[group].float() if zero.numel() else torch.tensor(0.0)
        if mode == 4:
            columns.append(word.float() * scale[group].float() + added)
        else:
            columns.append((word.float() - added) * scale[group].float())
    return (x.float() @ torch.stack(columns)).to(x.dtype)


def module(tuned: dict[str, Any]) -> ModuleType:
    """A `gemlite` that keeps `tuned` as what its kernels were tuned to."""
    made: Any = ModuleType("gemlite")
    made.helper = SimpleNamespace(
        A16Wn=A16Wn,
        A16W8_INT8=EightBits(torch.int8, dynamic=False),
        A16W8_FP8=EightBits(torch.float8_e4m3fn, dynamic=False),
        A8W8_INT8_dynamic=EightBits(torch.int8, dynamic=True),
        A8W8_FP8_dynamic=EightBits(torch.float8_e4m3fn, dynamic=True),
    )

    def load_config(filename: str, *, print_error: bool) -> bool:
        assert not print_error
        tuned.update(json.loads(Path(filename).read_text(encoding="utf-8")))
        return True

    def cache_config(filename: str) -> None:
        Path(filename).write_text(json.dumps(tuned), encoding="utf-8")

    made.load_config, made.cache_config = load_config, cache_config
    loaded: ModuleType = made
    return loaded

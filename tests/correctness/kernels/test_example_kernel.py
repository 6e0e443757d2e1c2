"""The kernel of the example package: in Triton's interpreter, on a card, and compiled.

A package's author checks a kernel so.
"""

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

import triton
from llama_perf_example_scheme.nf4 import GROUP, LEVELS, NF4Config, NF4Tensor, product
from torchao.quantization import quantize_
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from llama_perf import EngineOptions
from llama_perf.llama.engine import Engine
from llama_perf.llama.layers import RMSNorm
from tests.correctness.support.engines import distance
from tests.correctness.support.fused import check, small_model
from tests.correctness.support.kernel_samples import INTERPRETED


def drawn(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(device, dtype)


def test_codes_are_those_of_the_nearest_level() -> None:
    weight = torch.randn(5, 96)
    weight[2, :GROUP] = 0
    packed = NF4Tensor.from_float(weight)
    levels, groups = torch.tensor(LEVELS), weight.view(5, 3, GROUP, 1)
    scale = groups.abs().amax(2, keepdim=True).to(torch.bfloat16).float()
    nearest = (groups - scale * levels).abs().argmin(-1)
    expected = (levels[nearest] * scale[..., 0]).view(5, 96)
    torch.testing.assert_close(packed.dequantize(), expected)
    assert packed.shape == weight.shape
    with pytest.raises(ValueError, match="32 must divide K = 40"):
        NF4Tensor.from_float(torch.randn(4, 40))


@pytest.mark.parametrize(
    ("tokens", "rows", "columns", "dtype", "around"),
    [
        (1, 20, 96, torch.float32, ("norm",)),
        (3, 8, 608, torch.bfloat16, ("norm", "gate")),
        (8, 12, 32, torch.float32, ("residual",)),
        (1, 9, 1088, torch.float16, ()),
    ],
)
def test_the_kernel_is_its_formula(
    card: torch.device,
    tokens: int,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    around: tuple[str, ...],
) -> None:
    on: dict[str, Any] = {"device": card, "dtype": dtype}
    shapes = [(rows, columns)] * (2 if "gate" in around else 1)
    weights = [NF4Tensor.from_float(drawn(*shape, **on)) for shape in shapes]
    x, norm, residual = drawn(tokens, columns, **on), None, None
    wide = x.float()
    if "norm" in around:
        norm = RMSNorm(columns, 1e-5).to(**on).requires_grad_(False)
        norm.weight.data = drawn(columns, **on)
        wide = F.rms_norm(wide, (columns,), norm.weight.float(), 1e-5)
    expected, *gated = (wide @ weight.dequantize().float().T for weight in weights)
    if gated:
        expected = F.silu(expected) * gated[0]
    if "residual" in around:
        residual = drawn(tokens, rows, **on)
        expected = expected + residual.float()
    out = product(x, weights, norm=norm, residual=residual)
    assert out.dtype == dtype
    assert distance(out.float(), expected) < (1e-5 if dtype.itemsize == 4 else 5e-3)


def test_the_kernel_runs_a_fused_step(card: torch.device) -> None:
    model = small_model(None, card)
    quantize_(model, NF4Config())
    modules = Engine(model, EngineOptions(cache_size=24))
    options = EngineOptions(cache_size=24, fused=True, own_product=product)
    check((modules, Engine(model, options)), torch.ones(1, 2).long().to(card), 1e-5)
    again = deepcopy(model).logits(torch.ones(1, 2).long())
    torch.testing.assert_close(again, model.logits(torch.ones(1, 2).long()))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernel_is_compiled_for_each_architecture(capability: int) -> None:
    from llama_perf_example_scheme.kernel import _kernel

    pointers = {"x": "*bf16", "codes": "*u8", "scale": "*bf16", "levels": "*fp32"}
    pointers |= {"codes2": "*u8", "scale2": "*bf16", "norm": "*bf16"}
    signature = {**pointers, "residual": "constexpr", "out": "*bf16", "EPS": "fp32"}
    signature |= {"M": "i32", "N": "i32"}
    constants = {"residual": None, "K": 4096, "TOKENS": 1, "BLOCK_N": 8}
    constants |= {"BLOCK_P": 256, "GROUP": GROUP}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(_kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert f".target sm_{capability}" in compiled.asm["ptx"]
    assert compiled.metadata.shared <= 48 * 1024
    assert len(compiled.asm["cubin"]) > 0

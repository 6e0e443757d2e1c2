"""The linear layer's own way for one token in compiled code on a CPU."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._inductor.utils import run_and_get_code

from llama_perf.llama.layers import Linear, product

# How compiled code calls a library's product.
LIBRARY = re.compile(r"extern_kernels\.\w|torch\.ops\.(mkl|mkldnn)\.")
ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture
def compiled() -> Iterator[Any]:
    torch._dynamo.reset()
    yield torch.compile(product, fullgraph=True, dynamic=False)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 96), (1, 96), (96,)], ids=str)
def test_one_compiled_token_is_the_product_without_the_library(
    compiled: Any, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn((75, 96)).to(dtype)
    actual, code = run_and_get_code(compiled, x, weight)
    expected = F.linear(x.double(), weight.double())
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error < ROUNDING[dtype]
    assert LIBRARY.search(code[0]) is None


def test_several_tokens_are_the_librarys_product(compiled: Any) -> None:
    x, weight = torch.randn((2, 96)), torch.randn((75, 96))
    actual, code = run_and_get_code(compiled, x, weight)
    torch.testing.assert_close(actual, F.linear(x, weight))
    assert LIBRARY.search(code[0]) is not None


def test_without_a_compiler_it_is_the_librarys_to_the_bit() -> None:
    layer = Linear(96, 75).requires_grad_(False)
    assert layer.bias is None
    x = torch.randn((1, 1, 96))
    assert torch.equal(layer(x), F.linear(x, layer.weight))

"""The Triton kernels against the reference: interpreted on a CPU, for real on a card.

Triton reads TRITON_INTERPRET when it is imported, so the interpreter runs in a process
of its own: `test_in_the_interpreter` runs this file there.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from llama_perf.kernels import sparse
from llama_perf.kernels.packing import pack, to_lanes
from llama_perf.kernels.row_scaled import FORMATS as ROW_SCALED
from llama_perf.kernels.row_scaled import INT8
from llama_perf.kernels.triton.launch_products import int8_dynamic_product, product
from llama_perf.kernels.weight import Packed
from tests.correctness.support.interpreter import (
    INTERPRETED,
    device,
    test_in_the_interpreter,
)
from tests.correctness.support.kernel_samples import (
    DTYPES,
    FORMATS,
    LLAMA,
    ONE_OF_EACH,
    PATTERNS,
    Format,
    assert_close,
    assert_special,
    dynamic_reference,
    sample,
    with_special_rows,
)

__all__ = ["device", "test_in_the_interpreter"]
HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
# Products of few tokens and of many, off every tile's size.
SHAPES = ((1, 75, 160), (5, 20, 200), (9, 33, 80), (17, 70, 160))
# Sums of several splits and steps.
LONG = ((1, 16, 4096), (17, 20, 640))
# Columns of a sparse weight whose last group is short.
SHORT = (4, 36, 132, 576)
EACH = ONE_OF_EACH
Case = tuple[Format, tuple[int, int, int], torch.dtype]
CASES: list[Case] = [
    *((it, SHAPES[index], DTYPES[index % 3]) for it in FORMATS for index in range(4)),
    *((EACH[index % 5], (1, *shape), BFLOAT) for index, shape in enumerate(LLAMA)),
    *((EACH[index % 5], (17, *shape), BFLOAT) for index, shape in enumerate(LLAMA)),
    *((it, (m, 33, 64), dtype) for it in EACH for m in (2, 10) for dtype in DTYPES),
    *((it, (m, 17, 64), FLOAT) for it in EACH for m in range(1, 18)),
    *((it, shape, FLOAT) for it in EACH[1:] for shape in LONG),
    *((FORMATS[-1], (m, 17, columns), HALF) for columns in SHORT for m in (1, 10)),
]


def by_triton(
    x: Tensor, weight: Packed, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    codes, scale, zero = (tensor.to(device) for tensor in weight.tensors)
    moved = replace(weight, codes=codes, scale=scale, zero=zero)
    return product(x.to(device), moved, dtype=dtype).cpu()


@pytest.mark.parametrize("case", CASES, ids=lambda it: f"{it[0].name}-{it[1]}-{it[2]}")
def test_a_product_is_that_of_the_reference(case: Case, device: torch.device) -> None:
    format, shape, dtype = case
    packed = sample(format, shape, dtype, seed=shape[0])
    assert_close(by_triton(packed.x, packed.weight, device), packed)


@pytest.mark.parametrize("format", FORMATS, ids=lambda it: it.name)
def test_special_scales_and_codes_change_their_own_row_only(
    format: Format, device: torch.device
) -> None:
    for shape, dtype in (((2, 19, 160), torch.float32), ((9, 19, 160), torch.bfloat16)):
        packed = with_special_rows(sample(format, shape, dtype))
        # The interpreter's numpy warns of infinity times zero.
        with np.errstate(invalid="ignore"):
            special = by_triton(packed.x, packed.weight, device)
        assert_special(special, packed)


@pytest.mark.parametrize("shape", [(1, 33, 100), (8, 16, 640), (17, 40, 264)], ids=str)
def test_int8_sums_are_exact(shape: tuple[int, int, int], device: torch.device) -> None:
    tokens, rows, columns = shape
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (tokens, columns), generator=draw, dtype=torch.int8)
    codes = torch.randint(0, 256, (rows, columns), generator=draw)
    one, packed, scale = torch.ones((tokens, 1)), pack(codes, 8), torch.ones(rows)
    scale = to_lanes(scale)
    exact = dynamic_reference(INT8, x, one, packed, scale, rows)
    x, one, packed, scale = (it.to(device) for it in (x, one, packed, scale))
    for asm in (False,) if INTERPRETED else (False, True):
        sums = int8_dynamic_product(x, one, packed, scale, rows, asm=asm)
        assert torch.equal(sums.cpu(), exact)


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("name", ["fp6", "float8"])
def test_every_code_of_a_float_format(
    name: str, tokens: int, device: torch.device
) -> None:
    format = ROW_SCALED[name]
    count = 2**format.bits
    codes = torch.arange(count, dtype=torch.int32)
    if name == "float8":
        # Not NaN, which no quantized weight has.
        codes -= (codes & 127 == 127).int()
    diagonal = torch.zeros((count, count), dtype=torch.int32).fill_diagonal_(1) * codes
    words, scale = pack(diagonal, format.bits), to_lanes(torch.ones(count))
    weight = format.packed(count, count, words, scale)
    expected = format.decode(codes).expand(tokens, count)
    for dtype in DTYPES:
        x = torch.ones((tokens, count), dtype=dtype)
        assert torch.equal(by_triton(x, weight, device, torch.float32), expected)


@pytest.mark.parametrize("tokens", [1, 9])
def test_every_pattern_and_value_of_a_quad(tokens: int, device: torch.device) -> None:
    # A row for each pattern; token by token another place of the quads is asked for.
    values = torch.cartesian_prod(torch.arange(16), torch.arange(16)).flatten()
    places = torch.tensor(PATTERNS).repeat(1, 256)
    codes = pack(values | (places << 4), sparse.BITS)
    scale = to_lanes(torch.full((6, 8), 0.5, dtype=torch.float16))
    weight = sparse.packed_weight(6, 1024, codes, scale)
    for quad in (0, 1, 17, 200, 255):
        x = torch.zeros((tokens, 1024))
        for token in range(tokens):
            x[token, 4 * quad + token % 4] = token + 1
        expected = x @ sparse.dequantized(codes, scale, 6, 1024).T
        assert torch.equal(by_triton(x, weight, device), expected)

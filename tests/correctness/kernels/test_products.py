"""The operators on packed weights: on a CPU, and their Triton kernels.

The kernels are interpreted on a CPU and run for real on a card.
"""

import math
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llama_perf.kernels import cpp_library, cpu, products, row_scaled, sparse
from llama_perf.kernels.packing import from_lanes, pack, to_lanes
from llama_perf.kernels.products import dequantized, in_plain_torch, packed_product
from llama_perf.kernels.weight import FLOAT8, FLOATS, INT8, SPARSE, Packed
from tests.correctness.support.kernel_samples import (
    DTYPES,
    FORMATS,
    INTERPRETED,
    LLAMA,
    ONE_OF_EACH,
    PATTERNS,
    ROUNDING,
    Format,
    arguments,
    assert_close,
    assert_special,
    dynamic_reference,
    multiply,
    sample,
    with_special_rows,
)

# (M, N, K): one token and several, rows and columns off the tiles' and words' sizes.
SHAPES = (
    *((0, 20, 80), (1, 16, 64), (1, 75, 160), (2, 33, 40), (3, 20, 200), (8, 48, 320)),
    *((9, 40, 80), (16, 17, 96), (17, 70, 160)),
    *((1 + 7 * (index % 2), *shape) for index, shape in enumerate(LLAMA)),
)
# Of a kernel, products of few tokens and of many, off every tile's size.
FEW_AND_MANY = ((1, 75, 160), (5, 20, 200), (9, 33, 80), (17, 70, 160))
# Sums of several splits and steps.
LONG = ((1, 16, 4096), (17, 20, 640))
# Those of few tokens on tensor cores, with several splits, and the first beyond.
UP_TO_SIXTEEN = ((15, 40, 640), (16, 75, 2600), (17, 40, 640))
# Where a kernel's tiles of tokens begin and end; the others with one format each.
EDGES = (1, 2, 8, 9, 16, 17)
# Columns of a sparse weight whose last group is short.
SHORT = (4, 36, 132, 576)
HALF, BFLOAT, FLOAT, EACH = torch.float16, torch.bfloat16, torch.float32, ONE_OF_EACH
Case = tuple[Format, tuple[int, int, int], torch.dtype]
CASES: list[Case] = [
    *((it, FEW_AND_MANY[at], DTYPES[at % 3]) for it in FORMATS for at in range(4)),
    *((EACH[index % 5], (1, *shape), BFLOAT) for index, shape in enumerate(LLAMA)),
    *((EACH[index % 5], (17, *shape), BFLOAT) for index, shape in enumerate(LLAMA)),
    *((it, (m, 33, 64), dtype) for it in EACH for m in (2, 10) for dtype in DTYPES),
    *((it, (m, 17, 64), FLOAT) for it in EACH for m in EDGES),
    *((EACH[m % 5], (m, 17, 64), FLOAT) for m in range(1, 18) if m not in EDGES),
    *((it, shape, FLOAT) for it in EACH[1:] for shape in LONG),
    *((it, UP_TO_SIXTEEN[at], DTYPES[1 + at % 2]) for it in FORMATS for at in range(3)),
    *((FORMATS[-1], (m, 17, columns), HALF) for columns in SHORT for m in (1, 10)),
]
# One of each operator, and codes in several planes.
COMPILED = [
    *ONE_OF_EACH,
    *(format for format in FORMATS if format.name in {"uintx-3-8", "uintx-3-4"}),
]
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
# On a CPU: in C++, and in plain torch.
each_operator = pytest.mark.parametrize(
    "operator", [packed_product, in_plain_torch], ids=["cpp", "plain"]
)
each_format = pytest.mark.parametrize("format", FORMATS, ids=lambda it: it.name)


def compiled_product(x: Tensor, weight: Packed) -> Tensor:
    """By one graph, which no earlier test compiled."""
    torch._dynamo.reset()
    product: Tensor = torch.compile(products.product, fullgraph=True)(x, weight)
    return product


def operators(device: torch.device) -> list[Any]:
    """All that multiply on `device`."""
    cpu_alone = device.type == "cpu" and not INTERPRETED
    return [packed_product, in_plain_torch] if cpu_alone else [packed_product]


def test_the_operators_of_a_cpu_are_compiled_here() -> None:
    assert shutil.which("g++") is None or cpp_library.load() is None


@each_operator
@each_format
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_operator_is_the_product_with_the_dequantized_weight(
    format: Format, dtype: torch.dtype, operator: Any
) -> None:
    for shape in SHAPES:
        x, weight = sample(format, shape, dtype)
        assert_close(multiply(x, weight, dtype, operator=operator), x, weight)


@each_operator
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_times_a_weight_of_floats(dtype: torch.dtype, operator: Any) -> None:
    for rows, columns in ((1, 1), (17, 100), (33, 256)):
        x, weight = torch.randn((1, columns)), torch.randn((rows, columns)).to(dtype)
        numbers = [rows, columns, FLOATS, 0, 0, 0, 0]
        product = operator(x.to(dtype), weight, weight, weight, numbers, dtype)
        exact = x.to(dtype).double() @ weight.double().T
        terms = x.to(dtype).double().abs() @ weight.double().abs().T
        assert product.dtype == dtype
        assert ((product - exact).abs() <= ROUNDING[dtype] * terms).all()


@each_format
def test_many_tokens_and_blocks_beyond_one_stretch(
    format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_STRETCH", "_UNPACKED"):
        monkeypatch.setattr(cpu, name, 2 * 16 * 160)
    for tokens in (5, 40):
        x, weight = sample(format, (tokens, 75, 160), FLOAT)
        product = multiply(x, weight, FLOAT, operator=in_plain_torch)
        assert_close(product, x, weight)


@pytest.mark.parametrize("case", CASES, ids=lambda it: f"{it[0].name}-{it[1]}-{it[2]}")
def test_a_kernel_gives_the_operators_product(case: Case, card: torch.device) -> None:
    format, shape, dtype = case
    x, weight = sample(format, shape, dtype)
    assert_close(multiply(x, weight, dtype, device=card), x, weight)


def test_tensor_cores_take_every_format_whose_groups_fill_half_a_word() -> None:
    for format in FORMATS:
        _, weight = sample(format, (1, 16, 320), HALF)
        slow = {"int4-32", "uintx-1-8", "uintx-3-4", "uintx-4-20", "uintx-8-4"}
        assert (format.name not in slow) == weight.layout.TILED, format.name
        # int8 tokens have a kernel of their own.
        assert not replace(weight, activations="int8").layout.TILED


@each_format
def test_special_scales_and_codes_change_their_own_row_only(
    format: Format, any_device: torch.device
) -> None:
    for tokens, dtype in ((1, FLOAT), (2, FLOAT), (9, BFLOAT)):
        x, drawn = sample(format, (tokens, 19, 160), dtype)
        weight = with_special_rows(drawn)
        # The interpreter's numpy warns of infinity times zero.
        with np.errstate(invalid="ignore"):
            for operator in operators(any_device):
                how = {"device": any_device, "operator": operator}
                assert_special(multiply(x, weight, dtype, **how), x, weight)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@each_format
def test_what_is_not_finite_changes_its_own_token_only(
    format: Format, value: float, any_device: torch.device
) -> None:
    for tokens, dtype in ((2, FLOAT), (2, BFLOAT), (9, BFLOAT), (17, BFLOAT)):
        x, weight = sample(format, (tokens, 19, 160), dtype)
        broken, others = x.clone(), [row for row in range(tokens) if row != 1]
        broken[1, 5] = value
        met = dequantized(weight)[:, 5] != 0
        with np.errstate(invalid="ignore"):
            for operator in operators(any_device):
                how = {"device": any_device, "operator": operator}
                product = multiply(broken, weight, dtype, **how)
                assert not product[1, met].isfinite().any()
                assert_close(product[others], x[others], weight)


@pytest.mark.parametrize("format", COMPILED, ids=lambda it: it.name)
def test_one_token_compiles_to_one_graph(format: Format) -> None:
    x, weight = sample(format, (1, 75, 160), FLOAT)
    assert_close(compiled_product(x, weight), x, weight)
    if weight.decode == FLOAT8:
        rounded = replace(weight, activations="float8-row")
        expected = products.product(x, rounded)
        torch.testing.assert_close(compiled_product(x, rounded), expected)


@pytest.mark.parametrize("tokens", [1, 5])
@each_format
def test_opcheck(format: Format, tokens: int) -> None:
    dtype = DTYPES[FORMATS.index(format) % 3]
    x, weight = sample(format, (tokens, 20, 64), dtype)
    cases = [arguments(x, weight, result) for result in {dtype, FLOAT}]
    if weight.decode == INT8:
        values, scales = products.quantize_tokens(x, "int8")
        cases.append(arguments(values, weight, FLOAT, scales))
    for case in cases:
        torch.library.opcheck(packed_product, case, test_utils=CHECKS)


@each_operator
@pytest.mark.parametrize("columns", [2, 3, 20, 64, 1024, 1100, 4096])
@pytest.mark.parametrize("tokens", [0, 1, 2, 16, 17])
def test_int8_sums_are_exact(tokens: int, columns: int, operator: Any) -> None:
    # Every value at its largest: float32 would round these sums.
    _, words = sample(FORMATS[0], (1, 33, columns), FLOAT)
    unscaled = replace(words, scale=torch.ones_like(words.scale))
    one, scales = torch.ones((tokens, 1)), torch.rand((tokens, 1))
    weight = dequantized(unscaled)
    for other in (126, -127):
        x = torch.full((tokens, columns), 127, dtype=torch.int8)
        x[:, ::7] = other
        sums = multiply(x, unscaled, FLOAT, one, operator=operator)
        assert torch.equal(sums.long(), x.long() @ weight.long().T)
        exact = dynamic_reference(x, scales, words)
        product = multiply(x, words, FLOAT, scales, operator=operator)
        torch.testing.assert_close(product, exact, rtol=1e-6, atol=0)
        strided = x.as_strided(x.shape, (0, 1)) if tokens == 1 else x.t().clone().t()
        again = multiply(strided, words, FLOAT, scales, operator=operator)
        assert torch.equal(again, product)


@pytest.mark.parametrize(
    "shape",
    [(1, 33, 100), (8, 16, 640), (9, 33, 100), (16, 75, 2600), (17, 40, 264)],
    ids=str,
)
def test_int8_sums_of_a_kernel_are_exact(
    shape: tuple[int, int, int], card: torch.device
) -> None:
    drawn, weight = sample(FORMATS[0], shape, FLOAT)
    x = torch.randint_like(drawn, -127, 128).to(torch.int8)
    unscaled = replace(weight, scale=torch.ones_like(weight.scale))
    one = torch.ones((len(x), 1))
    sums = multiply(x, unscaled, FLOAT, one, device=card)
    assert torch.equal(sums, dynamic_reference(x, one, unscaled))


def test_a_compiled_product_of_rounded_tokens_is_the_operators() -> None:
    x, kept = sample(FORMATS[0], (1, 33, 100), FLOAT)
    weight = replace(kept, activations="int8")
    expected = products.product(x, weight)
    compiled = compiled_product(x, weight)
    torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-5)


def test_a_token_is_quantized_by_its_own_peak() -> None:
    x = torch.tensor([[0.0, 0.0], [2.54, -1.27], [-1e-3, 5e-4]])
    values, scale = products.quantize_tokens(x, "int8")
    assert values.tolist() == [[0, 0], [127, -64], [-127, 64]]
    torch.testing.assert_close(scale[1:, 0], torch.tensor([0.02, 1e-3 / 127]))
    assert torch.isfinite(values / scale).all()


@each_format
def test_a_token_of_zeros_has_a_product_of_zeros(
    format: Format, any_device: torch.device
) -> None:
    for tokens, dtype in ((2, FLOAT), (2, BFLOAT), (9, HALF), (17, BFLOAT)):
        x, weight = sample(format, (tokens, 19, 160), dtype)
        x[1] = 0
        for operator in operators(any_device):
            how = {"device": any_device, "operator": operator}
            product = multiply(x, weight, dtype, **how)
            assert not product[1].any()
            assert_close(product, x, weight)


@pytest.mark.parametrize("tokens", [1, 8])
def test_a_large_value_where_a_sparse_row_is_pruned_costs_no_precision(
    tokens: int, card: torch.device
) -> None:
    x, weight = sample(FORMATS[-1], (tokens, 40, 260), HALF)
    large = x.clone()
    x[:, 5], large[:, 5] = 0, 2.0**15
    pruned = (dequantized(weight)[:, 5] == 0).nonzero().flatten().tolist()
    assert_close(multiply(large, weight, HALF, device=card), x, weight, pruned)


@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT], ids=str)
@pytest.mark.parametrize("tokens", [1, 9])
def test_every_pattern_and_value_of_a_quad_lies_in_its_place(
    tokens: int, dtype: torch.dtype, any_device: torch.device
) -> None:
    # A row for each pattern, a quad for each pair of values.
    values = torch.cartesian_prod(torch.arange(16), torch.arange(16)).flatten()
    places = torch.tensor(PATTERNS).repeat(1, 256)
    codes = pack(values | (places << 4), sparse.BITS)
    scale = to_lanes(torch.full((6, 8), 0.5, dtype=torch.float16))
    weight = torch.zeros((6, 256, 4))
    for row, pattern in enumerate(PATTERNS):
        weight[row, :, pattern] = ((values.view(256, 2) ^ 8) - 8) / 2
    weight = weight.flatten(1)
    packed = Packed(codes, scale, scale, 6, 1024, format=SPARSE, bits=sparse.BITS)
    assert torch.equal(dequantized(packed), weight)
    # Token by token another place of a quad is asked for.
    for quad in (0, 1, 17, 200, 255):
        x = torch.zeros((tokens, 1024), dtype=dtype)
        for token in range(tokens):
            x[token, 4 * quad + token % 4] = token + 1
        for operator in operators(any_device):
            product = multiply(x, packed, FLOAT, device=any_device, operator=operator)
            assert torch.equal(product, x.float() @ weight.T)


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("name", ["fp6", "float8"])
def test_every_code_of_a_float_format_is_multiplied_as_its_value(
    name: str, tokens: int, any_device: torch.device
) -> None:
    format = row_scaled.FORMATS[name]
    count = 2**format.bits
    codes = torch.arange(count, dtype=torch.int32)
    if name == "float8":
        # Not NaN, which no quantized weight has.
        codes -= (codes & 127 == 127).int()
    diagonal = torch.zeros((count, count), dtype=torch.int32).fill_diagonal_(1) * codes
    words, scale = format.pack(diagonal), to_lanes(torch.ones(count))
    parts = (words, scale, scale, count, count)
    weight = Packed(*parts, bits=format.bits, decode=format.kind)
    expected = format.decode(codes).expand(tokens, count)
    for dtype in DTYPES:
        x = torch.ones((tokens, count), dtype=dtype)
        # A compiler that takes subnormal numbers for zeros would show here.
        for operator in operators(any_device):
            product = multiply(x, weight, FLOAT, device=any_device, operator=operator)
            assert torch.equal(product, expected)


@each_operator
@pytest.mark.parametrize("columns", [4, 12, 36, 124, 132, 260, 576])
def test_the_last_group_of_a_sparse_weight_may_be_short(
    columns: int, operator: Any
) -> None:
    x, weight = sample(FORMATS[-1], (1, 17, columns), FLOAT)
    by_column = weight.scale.float().repeat_interleave(128, dim=1)[:, :columns]
    unscaled = dequantized(replace(weight, scale=torch.ones_like(weight.scale)))
    assert torch.equal(dequantized(weight), unscaled * from_lanes(by_column, 17))
    assert_close(multiply(x, weight, FLOAT, operator=operator), x, weight)

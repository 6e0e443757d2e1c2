"""The operators on packed weights, on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llama_perf.kernels import grouped as grouped_weight
from llama_perf.kernels import int8_dynamic, row_scaled
from llama_perf.kernels import sparse as sparse_weight
from llama_perf.kernels.cpu import many_tokens, one_token
from llama_perf.kernels.packing import from_lanes, pack, to_lanes
from tests.correctness.support.kernel_samples import (
    DTYPES,
    FORMATS,
    LLAMA,
    OPERATORS,
    PATTERNS,
    SHAPES,
    Format,
    assert_close,
    assert_special,
    sample,
    with_special_rows,
)

NAMES = [format.name for format in FORMATS]
ONE_TOKEN = ((1, 16, 64), (1, 75, 160), (1, 20, 200))
# One of each operator, and codes in several planes.
COMPILED = [
    *OPERATORS,
    *(format for format in FORMATS if format.name in {"uintx-3-8", "uintx-3-4"}),
]
# What asks whether one token is being compiled.
FUSED = (row_scaled, grouped_weight, sparse_weight)
OTHERS = {
    "int8": row_scaled.int8_weight,
    "fp6": row_scaled.fp6_weight,
    "float8": row_scaled.float8_weight,
    "sparse": sparse_weight.sparse_weight,
}


@pytest.mark.parametrize("format", FORMATS, ids=NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_operator_is_the_product_with_the_dequantized_weight(
    format: Format, dtype: torch.dtype
) -> None:
    for shape in SHAPES:
        packed = sample(format, shape, dtype)
        assert_close(packed.product(), packed)


@pytest.mark.parametrize("format", FORMATS, ids=NAMES)
def test_the_shapes_of_llama_models_scaled_down(format: Format) -> None:
    for index, shape in enumerate(LLAMA):
        packed = sample(format, (1 + 7 * (index % 2), *shape), DTYPES[index % 3])
        assert_close(packed.product(), packed)


@pytest.mark.parametrize("format", FORMATS, ids=NAMES)
def test_many_tokens_and_blocks_beyond_one_stretch(
    format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (one_token, many_tokens):
        monkeypatch.setattr(module, "_STRETCH", 2 * 16 * 160)
    for tokens in (5, 40):
        packed = sample(format, (tokens, 75, 160), torch.float32)
        assert_close(packed.product(), packed)


@pytest.mark.parametrize("format", FORMATS, ids=NAMES)
def test_special_scales_and_codes_change_their_own_row_alone(
    format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tokens, dtype in ((1, torch.float32), (3, torch.bfloat16)):
        packed = with_special_rows(sample(format, (tokens, 19, 160), dtype))
        assert_special(packed.product(), packed)
    for module in FUSED:
        monkeypatch.setattr(module, "fused_here", lambda _x: True)
    packed = with_special_rows(sample(format, (1, 19, 160), torch.float32))
    assert_special(packed.call(grouped_weight.grouped_weight, OTHERS), packed)


@pytest.mark.parametrize("format", FORMATS, ids=NAMES)
def test_no_tokens_give_no_results(format: Format) -> None:
    packed = sample(format, (0, 20, 80), torch.float32)
    assert packed.product().shape == (0, 20)


@pytest.mark.parametrize("format", FORMATS, ids=NAMES)
def test_the_expression_for_one_token_is_the_product_too(
    format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is compiled elsewhere, run as it stands.
    for module in FUSED:
        monkeypatch.setattr(module, "fused_here", lambda _x: True)
    for dtype in DTYPES:
        for shape in ONE_TOKEN:
            packed = sample(format, shape, dtype)
            found = packed.call(grouped_weight.grouped_weight, OTHERS)
            assert_close(found, packed)


@pytest.mark.parametrize("format", COMPILED, ids=[format.name for format in COMPILED])
def test_one_token_compiles_to_one_graph(format: Format) -> None:
    torch._dynamo.reset()
    packed = sample(format, (1, 75, 160), torch.float32)

    def product(x: Tensor) -> Tensor:
        grouped = grouped_weight.grouped_weight
        parts = (x, packed.codes, packed.scale)
        if packed.zero is None:
            return OTHERS[format.name](*parts, packed.rows)
        return grouped(*parts, packed.zero, packed.rows, format.bits, format.kind)

    assert_close(torch.compile(product, fullgraph=True)(packed.x), packed)
    torch._dynamo.reset()


@pytest.mark.parametrize("tokens", [1, 5])
def test_opcheck(tokens: int) -> None:
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    shape = (tokens, 20, 64)
    row = sample(FORMATS[0], shape, torch.float32)
    arguments = (row.x, row.codes, row.scale, row.rows)
    torch.library.opcheck(row_scaled.int8_weight_op, arguments, test_utils=checks)
    row = sample(FORMATS[1], shape, torch.bfloat16)
    arguments = (row.x, row.codes, row.scale, row.rows)
    torch.library.opcheck(row_scaled.fp6_weight_op, arguments, test_utils=checks)
    row = sample(FORMATS[2], shape, torch.bfloat16)
    for dtype in (None, torch.float32):
        arguments = (row.x, row.codes, row.scale, row.rows, dtype)
        torch.library.opcheck(row_scaled.float8_weight_op, arguments, test_utils=checks)
    row = sample(FORMATS[-1], shape, torch.float16)
    arguments = (row.x, row.codes, row.scale, row.rows)
    torch.library.opcheck(sparse_weight.sparse_weight_op, arguments, test_utils=checks)
    quantized = int8_dynamic.quantize_tokens(row.x)
    words, scale = dynamic_weight(20, 64)
    plain = torch.zeros((20, 64), dtype=torch.int8)
    for codes in (words, plain):
        arguments = (*quantized, codes, scale, 20)
        dynamic = int8_dynamic.int8_dynamic_op
        torch.library.opcheck(dynamic, arguments, test_utils=checks)
    for format in FORMATS[3:-1]:
        group = sample(format, shape, torch.float16)
        torch.library.opcheck(
            grouped_weight.grouped_weight_op,
            (
                group.x,
                group.codes,
                group.scale,
                group.zero,
                group.rows,
                format.bits,
                format.kind,
            ),
            test_utils=checks,
        )


def dynamic_weight(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 256, (rows, columns), generator=draw)
    return pack(codes, 8), to_lanes(torch.rand(rows, generator=draw))


@pytest.mark.parametrize("columns", [20, 64, 1024, 1100, 4096])
@pytest.mark.parametrize("tokens", [1, 2, 16, 17])
def test_int8_sums_are_exact(tokens: int, columns: int) -> None:
    # Every value at its largest: float32 would round these sums.
    x = torch.full((tokens, columns), 127, dtype=torch.int8)
    x[:, ::7] = 126
    codes, scale = dynamic_weight(33, columns)
    one = torch.ones((tokens, 1))
    found = int8_dynamic.int8_dynamic_op(x, one, codes, torch.ones_like(scale), 33)
    whole = row_scaled.INT8.dequantized(codes, torch.ones_like(scale), 33, columns)
    assert torch.equal(found.long(), x.long() @ whole.long().T)
    scales = torch.rand((tokens, 1))
    exact = int8_dynamic.reference(x, scales, codes, scale, 33)
    found = int8_dynamic.int8_dynamic_op(x, scales, codes, scale, 33)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("columns", [2, 3, 20, 1024, 1100, 4096])
@pytest.mark.parametrize("tokens", [0, 1, 2, 16, 17])
def test_plain_int8_codes_give_the_bits_of_words(tokens: int, columns: int) -> None:
    x = torch.full((tokens, columns), 127, dtype=torch.int8)
    x[:, ::7] = -127
    words, scale = dynamic_weight(33, columns)
    whole = row_scaled.INT8.dequantized(words, torch.ones_like(scale), 33, columns)
    plain = whole.to(torch.int8)
    scales = torch.rand((tokens, 1))
    found = int8_dynamic.int8_dynamic_op(x, scales, plain, scale, 33)
    assert torch.equal(found, int8_dynamic.int8_dynamic_op(x, scales, words, scale, 33))
    if tokens == 1:
        strided = x.as_strided((1, columns), (0, 1))
        again = int8_dynamic.int8_dynamic_op(strided, scales, plain, scale, 33)
        assert torch.equal(again, found)


@pytest.mark.parametrize("columns", [64, 100, 4096])
def test_the_int8_expression_for_one_token_gives_the_same_bits(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn((1, columns), generator=torch.Generator().manual_seed(2))
    arguments = (x, *dynamic_weight(33, columns), 33)
    expected = int8_dynamic.int8_dynamic(*arguments)
    monkeypatch.setattr(int8_dynamic, "fused_here", lambda _x: True)
    assert torch.equal(int8_dynamic.int8_dynamic(*arguments), expected)
    compiled = torch.compile(int8_dynamic.int8_dynamic, fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), expected, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


def test_a_token_is_quantized_by_its_own_peak() -> None:
    x = torch.tensor([[0.0, 0.0], [2.54, -1.27], [-1e-3, 5e-4]])
    values, scale = int8_dynamic.quantize_tokens(x)
    assert values.tolist() == [[0, 0], [127, -64], [-127, 64]]
    torch.testing.assert_close(scale[1:, 0], torch.tensor([0.02, 1e-3 / 127]))
    assert torch.isfinite(values / scale).all()


def test_every_fp6_code_has_the_value_of_its_definition() -> None:
    codes = torch.arange(64, dtype=torch.int32)
    values = row_scaled.decode_fp6(codes).tolist()
    for code, value in enumerate(values):
        sign, exponent, mantissa = code >> 5, code >> 2 & 7, code & 3
        fraction = mantissa / 4 + (exponent > 0)
        expected = (-1) ** sign * 2.0 ** (max(exponent, 1) - 3) * fraction
        assert value == expected
        assert math.copysign(1, value) == (-1) ** sign
    assert max(values) == row_scaled.FP6.largest


def test_encoding_finds_the_nearest_fp6() -> None:
    exact = row_scaled.decode_fp6(torch.arange(64, dtype=torch.int32))
    assert torch.equal(row_scaled.decode_fp6(row_scaled.encode_fp6(exact)), exact)
    draw = torch.Generator().manual_seed(3)
    values = (torch.rand(10000, generator=draw) - 0.5) * 56
    values[:5000] *= 0.02
    found = row_scaled.decode_fp6(row_scaled.encode_fp6(values))
    nearest = (values.unsqueeze(1) - exact).abs().amin(1)
    torch.testing.assert_close((found - values).abs(), nearest, rtol=0, atol=0)


def test_every_pattern_and_value_of_a_quad_lies_where_it_was_kept() -> None:
    # A row for each pattern, a quad for each pair of values.
    values = torch.cartesian_prod(torch.arange(16), torch.arange(16)).flatten()
    places = torch.tensor(PATTERNS).repeat(1, 256)
    codes = pack(values | (places << 4), sparse_weight.BITS)
    scale = to_lanes(torch.full((6, 8), 0.5, dtype=torch.float16))
    found = sparse_weight.dequantized(codes, scale, 6, 1024)
    for row, (low, high) in enumerate(PATTERNS):
        expected = torch.zeros((256, 4))
        expected[:, low] = (values[0::2] - 8) / 2
        expected[:, high] = (values[1::2] - 8) / 2
        assert torch.equal(found[row], expected.flatten())


@pytest.mark.parametrize("columns", [4, 12, 36, 124, 132, 260, 576])
def test_the_last_group_of_a_sparse_weight_may_be_short(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = sample(FORMATS[-1], (1, 17, columns), torch.float32)
    assert packed.scale.shape[1] == -(-columns // 128)
    whole = packed.scale.float().repeat_interleave(128, dim=1)[:, :columns]
    ones = torch.ones_like(packed.scale)
    bare = sparse_weight.dequantized(packed.codes, ones, 17, columns)
    found = sparse_weight.dequantized(packed.codes, packed.scale, 17, columns)
    assert torch.equal(found, bare * from_lanes(whole, 17))
    assert_close(packed.product(), packed)
    monkeypatch.setattr(sparse_weight, "fused_here", lambda _x: True)
    parts = (packed.x, packed.codes, packed.scale, packed.rows)
    assert_close(sparse_weight.sparse_weight(*parts), packed)


def test_a_stretch_is_some_blocks_and_all_stretches_are_all_blocks() -> None:
    packed = torch.zeros((3000, 1, 16))
    slices = list(one_token.stretches(packed, 576))
    assert len(slices) > 1
    assert [index for part in slices for index in range(3000)[part]] == [*range(3000)]

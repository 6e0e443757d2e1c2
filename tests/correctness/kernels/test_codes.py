"""Codes: their values, rounding to them, products of rounded tokens.

Those of weights in fp6 and float8, and those of the quantized caches, with their bytes.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llama_perf.kernels import cache_codes, products
from llama_perf.kernels.products import quantize_tokens
from llama_perf.kernels.row_scaled import FLOAT8, FP6, RowScaled, round_to_float8
from llama_perf.kernels.weight import Activations
from tests.correctness.support.kernel_samples import (
    DTYPES,
    FORMATS,
    ROUNDING,
    dynamic_reference,
    magnitude,
    sample,
)

CODES = torch.arange(256, dtype=torch.int32)
NOT_NAN = CODES[CODES & 127 != 127]
ROUNDINGS: tuple[Activations, ...] = ("float8-row", "float8-tensor")
# Half a step of int8, or of 3 mantissa bits; a scale rounded up makes steps larger.
STEP = {cache_codes.INT8: 0.5 / 127, cache_codes.FP8: 2.0**-4}
ROUNDED_UP = 1 + 2.0**-7
each_format = pytest.mark.parametrize(
    ("format", "codes"), [(FP6, CODES[:64]), (FLOAT8, NOT_NAN)], ids=["fp6", "float8"]
)
each_kind = pytest.mark.parametrize("kind", STEP, ids=str)


@each_format
def test_every_code_has_the_value_of_its_definition(
    format: RowScaled, codes: Tensor
) -> None:
    mantissa_bits, bias = (2, 3) if format is FP6 else (3, 7)
    values = format.decode(codes).tolist()
    for code, value in zip(codes.tolist(), values, strict=True):
        sign = code >> format.bits - 1
        exponent = code >> mantissa_bits & 2 ** (format.bits - 1 - mantissa_bits) - 1
        mantissa = code & 2**mantissa_bits - 1
        fraction = mantissa / 2**mantissa_bits + (exponent > 0)
        expected = (-1) ** sign * 2.0 ** (max(exponent, 1) - bias) * fraction
        assert value == expected
        assert math.copysign(1, value) == (-1) ** sign
    assert max(values) == format.largest


def values_around(format: RowScaled, codes: Tensor) -> Tensor:
    """Codes, the middles between them, the floats next to both, and random values."""
    exact = format.decode(codes).sort().values
    ends = torch.cat([exact, (exact[1:] + exact[:-1]) / 2])
    beside = [torch.nextafter(ends, ends + side) for side in (-1.0, 1.0)]
    drawn = torch.randn(20000) * 2.0 ** torch.randint(-30, 8, (20000,))
    tiny = torch.tensor([1e-45, -1e-45, 1e-38, 0.0, -0.0])
    largest = format.largest
    return torch.cat([ends, *beside, drawn, tiny]).clamp(-largest, largest)


@each_format
def test_encoding_finds_the_nearest(format: RowScaled, codes: Tensor) -> None:
    encode = format.encode
    exact, values = format.decode(codes), values_around(format, codes)
    assert torch.equal(format.decode(encode(exact)), exact)
    error = (format.decode(encode(values)).double() - values.double()).abs()
    nearest = (values.double().unsqueeze(1) - exact.double()).abs().amin(1)
    assert torch.equal(error, nearest)


def test_float8_is_rounded_to_the_even_one_of_two_and_to_the_largest() -> None:
    exact = FLOAT8.decode(NOT_NAN)
    positive = exact[exact >= 0]
    assert (FLOAT8.encode((positive[1:] + positive[:-1]) / 2) % 2 == 0).all()
    too_large = torch.tensor([449.0, -1e30])
    assert FLOAT8.decode(FLOAT8.encode(too_large)).tolist() == [448, -448]
    # By arithmetic, what the codes have.
    values = values_around(FLOAT8, NOT_NAN)
    expected = FLOAT8.decode(FLOAT8.encode(values))
    for rounding in (round_to_float8, torch.compile(round_to_float8, fullgraph=True)):
        assert torch.equal(rounding(values), expected)
    torch._dynamo.reset()


def test_a_token_is_rounded_to_float8_by_its_own_peak_or_that_of_all() -> None:
    x = torch.tensor([[0.0, 0.0], [4.48, -1.01], [-0.0448, 0.0201]])
    values, scale = quantize_tokens(x, "float8-row")
    assert values.tolist() == [[0, 0], [448, -104], [-448, 208]]
    torch.testing.assert_close(scale[1:, 0], torch.tensor([0.01, 1e-4]))
    values, scale = quantize_tokens(x, "float8-tensor")
    assert values.tolist() == [[0, 0], [448, -104], [-4.5, 2]]
    torch.testing.assert_close(scale, torch.tensor([[0.01]]))
    for activations in ROUNDINGS:
        values, scale = quantize_tokens(x[:0], activations)
        assert (values.shape, len(scale)) == ((0, 2), 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activations", ROUNDINGS)
def test_a_float8_product_is_that_of_the_rounded_tokens(
    activations: Activations, dtype: torch.dtype
) -> None:
    for tokens in (1, 2, 17):
        x, kept = sample(FORMATS[2], (tokens, 33, 100), dtype)
        # Far apart, and their values' sums past float16 but for the tokens' scales.
        x *= 2.0 ** -torch.arange(tokens).view(-1, 1).to(dtype)
        weight = replace(kept, scale=kept.scale * 100, activations=activations)
        values, x_scale = quantize_tokens(x, activations)
        expected = dynamic_reference(values, x_scale, weight)
        allowed = ROUNDING[dtype] * magnitude(values * x_scale, weight)
        product = products.product(x, weight)
        assert product.dtype == dtype
        assert ((product.float() - expected).abs() <= allowed).all()


def cached_values() -> Tensor:
    """Of another magnitude in each row."""
    return torch.randn((64, 128)) * torch.logspace(-30, 30, 64)[:, None]


@each_kind
def test_a_round_trip_through_a_cache_is_within_half_a_step(kind: torch.dtype) -> None:
    x = cached_values()
    x[0] = 0
    codes, scale = cache_codes.quantize(x, kind)
    assert (codes.dtype, scale.dtype) == (kind, torch.bfloat16)
    back = cache_codes.dequantized(codes, scale, torch.float32)
    error, largest = (back - x).abs(), x.abs().amax(-1, keepdim=True)
    if kind == cache_codes.INT8:
        bound = STEP[kind] * largest * ROUNDED_UP
    else:
        # Codes below 2**-6 are multiples of 2**-9.
        bound = torch.maximum(STEP[kind] * x.abs(), 2.0**-10 * largest / 448)
        bound *= ROUNDED_UP
    assert (error <= bound * (1 + 1e-6)).all()
    assert (error > 0.8 * bound).any()
    largest_back = back.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(largest_back, largest, rtol=2.0**-7, atol=0)


def test_every_fp8_code_of_a_cache_is_torchs_and_comes_back() -> None:
    exact = FLOAT8.decode(NOT_NAN)
    codes, unit = NOT_NAN.to(torch.uint8), cache_codes.UNIT[cache_codes.FP8]
    assert torch.equal(codes.view(torch.float8_e4m3fn).float(), exact)
    assert torch.equal(cache_codes.decoded(codes) * unit, exact)
    # Beside the largest code the scale is 1, so that a code is its own value.
    around = values_around(FLOAT8, NOT_NAN)
    pairs = torch.stack((around, torch.full_like(around, 448.0)), -1)
    for x in (pairs, cached_values()):
        encoded, scale = cache_codes.quantize(x, cache_codes.FP8)
        assert x is not pairs or (scale == 1).all()
        cast = (x / scale.float()[:, None]).to(torch.float8_e4m3fn)
        assert torch.equal(encoded, cast.view(torch.uint8))


def test_compiled_codes_of_a_cache_are_those_of_eager_code() -> None:
    x = cached_values()
    compiled = torch.compile(cache_codes.quantize, fullgraph=True)
    for kind in STEP:
        expected = cache_codes.quantize(x, kind)
        assert all(map(torch.equal, compiled(x, kind), expected))


@each_kind
def test_the_bytes_of_a_cache_are_at_most_0_53_of_bfloat16s(kind: torch.dtype) -> None:
    for width in (64, 128):
        x = torch.ones((10, width), dtype=torch.bfloat16)
        taken = sum(tensor.nbytes for tensor in cache_codes.quantize(x, kind))
        assert taken <= 0.53 * x.nbytes

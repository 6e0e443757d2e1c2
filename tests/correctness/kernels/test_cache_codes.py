"""Codes of the quantized caches: bounds of the error, bytes, and every fp8 code."""

import pytest
import torch
from torch import Tensor

from llama_perf.kernels import cache_codes
from llama_perf.kernels.row_scaled import FLOAT8
from tests.correctness.kernels.test_float_codes import NOT_NAN, values_around

# Half a step of int8, or of 3 mantissa bits; a scale rounded up makes steps larger.
STEP = {cache_codes.INT8: 0.5 / 127, cache_codes.FP8: 2.0**-4}
ROUNDED_UP = 1 + 2.0**-7
each_kind = pytest.mark.parametrize("kind", STEP, ids=str)


def values() -> Tensor:
    """Of another magnitude in each row."""
    return torch.randn((64, 128)) * torch.logspace(-30, 30, 64)[:, None]


@each_kind
def test_a_round_trip_is_within_half_a_step(kind: torch.dtype) -> None:
    x = values()
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


def test_every_fp8_code_is_torchs_and_comes_back() -> None:
    exact = FLOAT8.decode(NOT_NAN)
    codes, unit = NOT_NAN.to(torch.uint8), cache_codes.UNIT[cache_codes.FP8]
    assert torch.equal(codes.view(torch.float8_e4m3fn).float(), exact)
    assert torch.equal(cache_codes.decoded(codes) * unit, exact)
    # Beside the largest code the scale is 1, so that a code is its own value.
    around = values_around(FLOAT8, NOT_NAN)
    pairs = torch.stack((around, torch.full_like(around, 448.0)), -1)
    for x in (pairs, values()):
        encoded, scale = cache_codes.quantize(x, cache_codes.FP8)
        assert x is not pairs or (scale == 1).all()
        cast = (x / scale.float()[:, None]).to(torch.float8_e4m3fn)
        assert torch.equal(encoded, cast.view(torch.uint8))


def test_compiled_codes_are_those_of_eager_code() -> None:
    x = values()
    compiled = torch.compile(cache_codes.quantize, fullgraph=True)
    for kind in STEP:
        expected = cache_codes.quantize(x, kind)
        assert all(map(torch.equal, compiled(x, kind), expected))


@each_kind
def test_the_bytes_are_at_most_0_53_of_bfloat16s(kind: torch.dtype) -> None:
    for width in (64, 128):
        x = torch.ones((10, width), dtype=torch.bfloat16)
        taken = sum(tensor.nbytes for tensor in cache_codes.quantize(x, kind))
        assert taken <= 0.53 * x.nbytes

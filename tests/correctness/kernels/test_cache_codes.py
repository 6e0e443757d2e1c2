"""Codes of the quantized caches: bounds of the error, bytes, and every fp8 code."""

import pytest
import torch
from torch import Tensor

from llama_perf.kernels import cache_codes

# Half a step of int8, or of 3 mantissa bits; a scale rounded up makes steps larger.
STEP = {cache_codes.INT8: 0.5 / 127, cache_codes.FP8: 2.0**-4}
ROUNDED_UP = 1 + 2.0**-7
each_kind = pytest.mark.parametrize("kind", STEP, ids=str)


def values(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((64, 128), generator=generator)
    return x * torch.logspace(-30, 30, 64)[:, None]


@each_kind
def test_a_round_trip_is_within_half_a_step(kind: torch.dtype) -> None:
    x = values()
    codes, scale = cache_codes.quantize(x, kind)
    assert (codes.dtype, scale.dtype) == (kind, torch.bfloat16)
    error = (cache_codes.dequantized(codes, scale, torch.float32) - x).abs()
    largest = x.abs().amax(-1, keepdim=True)
    if kind == cache_codes.INT8:
        bound = STEP[kind] * largest * ROUNDED_UP
    else:
        # Codes below 2**-6 are multiples of 2**-9.
        bound = torch.maximum(STEP[kind] * x.abs(), 2.0**-10 * largest / 448)
        bound *= ROUNDED_UP
    assert (error <= bound * (1 + 1e-6)).all()
    assert (error > 0.8 * bound).any()


@each_kind
def test_zeros_and_the_largest_value_come_back(kind: torch.dtype) -> None:
    x = torch.zeros((3, 64))
    x[1, 5], x[2, 7] = -2.0, 1e30
    codes, scale = cache_codes.quantize(x, kind)
    back = cache_codes.dequantized(codes, scale, torch.float32)
    torch.testing.assert_close(back, x, rtol=2.0**-7, atol=0)


def test_every_fp8_code_is_torchs_and_comes_back() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    exact = codes.view(torch.float8_e4m3fn).float()
    codes, exact = codes[~exact.isnan()], exact[~exact.isnan()]
    unit = cache_codes.UNIT[cache_codes.FP8]
    assert torch.equal(cache_codes.decoded(codes) * unit, exact)
    # Paired with the largest code the scale is 1, so that a code is its own value.
    pairs = torch.stack((exact, torch.full_like(exact, 448.0)), -1)
    encoded, scale = cache_codes.quantize(pairs, cache_codes.FP8)
    assert (scale == 1).all()
    assert torch.equal(encoded[:, 0], codes)


def test_fp8_codes_are_those_of_torchs_cast() -> None:
    x = values()
    codes, scale = cache_codes.quantize(x, cache_codes.FP8)
    cast = (x / scale.float()[:, None]).to(torch.float8_e4m3fn)
    assert torch.equal(codes, cast.view(torch.uint8))


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

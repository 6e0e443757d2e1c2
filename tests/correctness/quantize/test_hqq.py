"""Half-quadratic quantization: torchao's search, bit for bit, in less time."""

from unittest.mock import patch

import pytest
import torch
from torchao.quantization import quant_primitives

from llama_perf.quantize.hqq import search_zeros

# Of weights this far apart some errors are large enough for the step for outliers.
SMALL, LARGE = 0.05, 3.0


@pytest.mark.parametrize(("bits", "size"), [(4, 64), (5, 32), (2, 8)])
@pytest.mark.parametrize(
    ("deviation", "outliers"), [(SMALL, 1.0), (SMALL, 200.0), (LARGE, 1.0), (1e-6, 1.0)]
)
def test_codes_scales_and_zeros_are_those_of_torchao(
    bits: int, size: int, deviation: float, outliers: float
) -> None:
    weight = torch.randn((256, size), generator=torch.Generator().manual_seed(0))
    weight *= deviation
    weight[::37, 3] *= outliers
    weight[5] = 0.0
    search = quant_primitives._choose_qparams_and_quantize_affine_hqq
    found = [
        search(
            weight,
            nbits=bits,
            group_size=size,
            compute_dtype=torch.float32,
            device="cpu",
            raw_output=True,
            optimize_weights=optimize,
        )
        for optimize in (
            quant_primitives.optimize_weights_proximal_legacy,
            search_zeros,
        )
    ]
    for theirs, ours in zip(*(parts[:3] for parts in found), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("deviation", "raises_powers"), [(SMALL, False), (LARGE, True)]
)
def test_the_step_for_outliers_is_left_out_where_it_changes_nothing(
    deviation: float, raises_powers: bool
) -> None:
    weight = torch.randn((64, 64), generator=torch.Generator().manual_seed(0))
    weight *= deviation
    low, high = weight.aminmax(dim=1, keepdim=True)
    scale = 15 / (high - low)
    step = quant_primitives._shrink_lp_op
    with patch.object(quant_primitives, "_shrink_lp_op", side_effect=step) as shrink:
        search_zeros(weight, scale, -low * scale, [0, 15])
    assert shrink.called == raises_powers

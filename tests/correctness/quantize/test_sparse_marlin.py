"""2:4 pruning, and what sparse-marlin makes of the weights that it keeps."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from llama_perf.kernels.packing import from_lanes
from llama_perf.quantize.sparse_marlin import SparseMarlinWeight, prune_2_4
from llama_perf.rows.schemes import Scheme

SCHEME = Scheme.parse("sparse-marlin")


def random_weight(rows: int = 37, columns: int = 576) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn((rows, columns), generator=draw)


def restored(weight: Tensor) -> Tensor:
    return SparseMarlinWeight.from_float(weight, SCHEME).dequantized()


def test_the_two_largest_magnitudes_of_every_four_are_kept() -> None:
    for order in permutations((1.0, -2.0, 3.0, -4.0)):
        pruned = prune_2_4(torch.tensor([order]))
        assert pruned.tolist() == [[x if abs(x) > 2 else 0.0 for x in order]]
    weight = random_weight()
    quads = prune_2_4(weight).unflatten(1, (-1, 4))
    assert (quads.count_nonzero(2) == 2).all()
    lost = weight.abs().unflatten(1, (-1, 4)).sort(2).values[:, :, :2].square().sum()
    difference = (prune_2_4(weight) - weight).square().sum()
    torch.testing.assert_close(difference, lost)
    # Of equal magnitudes the first.
    weight = torch.tensor([[1.0, -1.0, 1.0, 1.0, 0.0, 2.0, -2.0, 2.0]])
    assert prune_2_4(weight).tolist() == [[1.0, -1.0, 0.0, 0.0, 0.0, 2.0, -2.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_that_is_sparse_already_loses_nothing(dtype: torch.dtype) -> None:
    weight = random_weight().to(dtype)
    pruned = prune_2_4(weight)
    assert pruned.dtype == dtype
    assert torch.equal(prune_2_4(pruned), pruned)
    assert torch.equal(restored(weight), restored(pruned))
    # Quads of one value and of none are 2:4 too.
    pruned[::2, ::3] = 0
    pruned[5] = 0
    assert torch.equal(prune_2_4(pruned), pruned)


def test_values_on_the_grid_come_back_exactly() -> None:
    # Every code in a group, the one at the lower end with either sign.
    draw = torch.Generator().manual_seed(1)
    values = torch.randint(-7, 8, (32, 128), generator=draw).float()
    values[::2, 0], values[1::2, 0] = 8.0, -8.0
    weight = prune_2_4(values) * 0.25
    packed = SparseMarlinWeight.from_float(weight, SCHEME)
    assert torch.equal(packed.dequantized(), weight)
    assert (packed.scale[:, :, ::2] < 0).all()
    assert (packed.scale[:, :, 1::2] > 0).all()


def test_pruned_weights_and_zeros_stay_and_kept_ones_are_within_a_step() -> None:
    weight = random_weight()
    weight[:, 128:256] = 0
    weight[3] = 0
    pruned, found = prune_2_4(weight), restored(weight)
    assert not found[pruned == 0].any()
    assert found[4].any()
    for start in range(0, 576, 128):
        part = pruned[:, start : start + 128]
        error = (found[:, start : start + 128] - part).abs().amax(1)
        # Clipping and a rounded scale may cost a step at the ends.
        assert (error <= part.abs().amax(1) / 8 * 1.5).all()


def test_scales_are_better_than_those_of_the_peak() -> None:
    weight = prune_2_4(random_weight(64, 512))
    groups = weight.unflatten(1, (-1, 128))
    step = groups.abs().amax(2, keepdim=True) / 7
    plain = (torch.round(groups / step) * step).flatten(1)
    ours, theirs = (
        (each - weight).square().mean().item() for each in (restored(weight), plain)
    )
    assert ours < 0.9 * theirs


@pytest.mark.parametrize("value", [1e-42, 1e-38, 1e-30, 6e-8, 1e4, 1e30, 3e38])
def test_every_size_of_weight_is_kept_to_a_tenth(value: float) -> None:
    weight = prune_2_4(random_weight().clamp(-1, 1) * value)
    packed = SparseMarlinWeight.from_float(weight, SCHEME)
    assert torch.isfinite(packed.scale).all()
    assert (from_lanes(packed.scale, len(weight)) != 0).all()
    found = packed.dequantized()
    assert torch.isfinite(found).all()
    error, size = (found - weight).double().norm(), weight.double().norm()
    # The least normal number, below which a weight may become 0.
    assert error <= 0.1 * size + 1.2e-38 * weight.numel() ** 0.5

"""2:4 pruning, and what sparse-marlin makes of the weights that it keeps."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import quantize_

from llama_perf import quantize_model
from llama_perf.errors import SpecError
from llama_perf.kernels.packing import from_lanes
from llama_perf.llama.presets import preset
from llama_perf.llama.transformer import Transformer, tensor_bytes
from llama_perf.quantize.sparse_marlin import (
    SparseMarlinConfig,
    SparseMarlinWeight,
    prune_2_4,
)


def random_weight(rows: int = 37, columns: int = 576) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn((rows, columns), generator=draw)


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


def test_of_equal_magnitudes_the_first_are_kept() -> None:
    weight = torch.tensor([[1.0, -1.0, 1.0, 1.0, 0.0, 2.0, -2.0, 2.0]])
    pruned = prune_2_4(weight)
    assert pruned.tolist() == [[1.0, -1.0, 0.0, 0.0, 0.0, 2.0, -2.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_that_is_sparse_already_loses_nothing(dtype: torch.dtype) -> None:
    weight = random_weight().to(dtype)
    pruned = prune_2_4(weight)
    assert pruned.dtype == dtype
    assert torch.equal(prune_2_4(pruned), pruned)
    # Quads of one value and of none are 2:4 too.
    pruned[::2, ::3] = 0
    pruned[5] = 0
    assert torch.equal(prune_2_4(pruned), pruned)
    from_dense = SparseMarlinWeight.from_float(weight).dequantized()
    again = SparseMarlinWeight.from_float(prune_2_4(weight)).dequantized()
    assert torch.equal(from_dense, again)


def test_values_on_the_grid_come_back_exactly() -> None:
    # Every code in a group, the one at the lower end with either sign.
    draw = torch.Generator().manual_seed(1)
    values = torch.randint(-7, 8, (32, 128), generator=draw).float()
    values[::2, 0], values[1::2, 0] = 8.0, -8.0
    weight = prune_2_4(values) * 0.25
    restored = SparseMarlinWeight.from_float(weight)
    assert torch.equal(restored.dequantized(), weight)
    assert (restored.scale[:, :, ::2] < 0).all()
    assert (restored.scale[:, :, 1::2] > 0).all()


def test_pruned_weights_stay_zero_and_kept_ones_are_within_half_a_step() -> None:
    weight = random_weight()
    pruned = prune_2_4(weight)
    restored = SparseMarlinWeight.from_float(weight).dequantized()
    assert not restored[pruned == 0].any()
    for start in range(0, 576, 128):
        part = pruned[:, start : start + 128]
        error = (restored[:, start : start + 128] - part).abs().amax(1)
        # Clipping and a rounded scale may cost a step at the ends.
        assert (error <= part.abs().amax(1) / 8 * 1.5).all()


def test_scales_are_better_than_those_of_the_peak() -> None:
    weight = prune_2_4(random_weight(64, 512))
    groups = weight.unflatten(1, (-1, 128))
    step = groups.abs().amax(2, keepdim=True) / 7
    plain = (torch.round(groups / step) * step).flatten(1)
    restored = SparseMarlinWeight.from_float(weight).dequantized()
    errors = [(each - weight).square().mean().item() for each in (restored, plain)]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("value", [1e-42, 1e-38, 1e-30, 6e-8, 1e4, 1e30, 3e38])
def test_every_size_of_weight_is_kept_to_a_tenth(value: float) -> None:
    weight = prune_2_4(random_weight().clamp(-1, 1) * value)
    stored = SparseMarlinWeight.from_float(weight)
    assert torch.isfinite(stored.scale).all()
    assert (from_lanes(stored.scale, len(weight)) != 0).all()
    restored = stored.dequantized()
    assert torch.isfinite(restored).all()
    error, size = (restored - weight).double().norm(), weight.double().norm()
    # The least normal number, below which a weight may become 0.
    assert error <= 0.1 * size + 1.2e-38 * weight.numel() ** 0.5


def test_groups_of_zeros_stay_zero_beside_others() -> None:
    weight = random_weight()
    weight[:, 128:256] = 0
    weight[3] = 0
    restored = SparseMarlinWeight.from_float(weight).dequantized()
    assert not restored[:, 128:256].any()
    assert not restored[3].any()
    assert restored[4].any()


def test_a_weight_takes_three_bits_and_an_eighth() -> None:
    linear = nn.Linear(4096, 11008, bias=False, device="meta")
    root = nn.ModuleDict({"linear": linear})
    quantize_(root, SparseMarlinConfig())
    assert tensor_bytes(root.get_parameter("linear.weight")) * 8 == 3.125 * 4096 * 11008


def test_a_width_that_is_no_multiple_of_four_is_refused_by_name() -> None:
    model = Transformer(preset("stories15M")).requires_grad_(False)
    feed_forward = model.get_submodule("layers.1.feed_forward")
    feed_forward.w2 = nn.Linear(770, 288, bias=False)
    allowed = r"K = 770 of model\.layers\.1\.feed_forward\.w2 must be a multiple of 4"
    with pytest.raises(SpecError, match=allowed):
        quantize_model(model, "sparse-marlin", kernels="native")
    with pytest.raises(SpecError, match="K = 6 of the weight must be a multiple of 4"):
        prune_2_4(torch.ones((2, 6)))
    root = nn.ModuleDict({"linear": nn.Linear(6, 4)})
    with pytest.raises(
        SpecError, match=r"K = 6 of the weight \(4, 6\) must be a multiple of 4"
    ):
        quantize_(root, SparseMarlinConfig())


def test_a_model_answers_as_the_one_with_the_dequantized_weights() -> None:
    torch.manual_seed(0)
    model = Transformer(preset("stories15M")).requires_grad_(False)
    tokens = torch.arange(1, 12).unsqueeze(0)
    packed = quantize_model(model, "sparse-marlin", kernels="native")
    restored = packed.logits(tokens)
    for module in packed.modules():
        if isinstance(module, nn.Linear):
            dense = module.weight.dequantize()
            module.weight = nn.Parameter(dense, requires_grad=False)
    torch.testing.assert_close(restored, packed.logits(tokens), rtol=1e-4, atol=1e-4)

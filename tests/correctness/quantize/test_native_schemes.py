"""The native schemes' tensors: what they keep, store, refuse and weigh."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization import quantize_

from llama_perf import quantize_model
from llama_perf.errors import SpecError
from llama_perf.kernels import int8_dynamic
from llama_perf.llama.presets import preset
from llama_perf.llama.transformer import Transformer, tensor_bytes
from llama_perf.quantize.float8dq import Float8DynamicConfig
from llama_perf.quantize.int8dq import Int8DynamicWeight
from llama_perf.quantize.packed_tensor import PackedTensor
from llama_perf.quantize.registry import config_for
from llama_perf.quantize.sparse_marlin import prune_2_4
from llama_perf.quantize.uintx import UintxWeightConfig
from llama_perf.rows.schemes import Scheme
from scripts.doc_tables.figures import QUANTIZE_TOKENS
from tests.correctness.support.schemes import schemes_on

GROUPED = ("int4wo-32", "int4wo-32-hqq", "uintx-4-64", "uintx-3-12", "uintx-2-8")
CONFIGS: dict[str, AOBaseConfig] = {
    name: config_for(
        Scheme.parse(name),
        kernels="native",
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    for name in schemes_on("native", grouped=(*GROUPED, "uintx-5-64-hqq"))
}
ROWS, COLUMNS = 75, 192


def random_weight() -> Tensor:
    return torch.randn((ROWS, COLUMNS), generator=torch.Generator().manual_seed(0))


def packed(linear: nn.Linear) -> PackedTensor:
    assert isinstance(linear.weight, PackedTensor)
    return linear.weight


def quantized(config: AOBaseConfig, weight: Tensor | None = None) -> nn.Linear:
    linear = nn.Linear(COLUMNS, ROWS, bias=True)
    linear.weight = nn.Parameter(random_weight() if weight is None else weight)
    root = nn.ModuleDict({"linear": linear})
    quantize_(root, config)
    layer = root.get_submodule("linear").requires_grad_(False)
    assert isinstance(layer, nn.Linear)
    assert isinstance(layer.weight, PackedTensor)
    return layer


@pytest.mark.parametrize("name", CONFIGS)
def test_a_linear_is_the_product_with_its_dequantized_weight(name: str) -> None:
    linear = quantized(CONFIGS[name])
    weight = linear.weight.dequantize()
    for shape in ((COLUMNS,), (1, COLUMNS), (2, 3, COLUMNS)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        restored = linear(x)
        if name in QUANTIZE_TOKENS:
            values, scale = QUANTIZE_TOKENS[name](x.view(-1, COLUMNS))
            x = (values * scale).view(shape)
        # In float64, so that one side alone is rounded.
        parts = (each.double() for each in (x, weight, linear.bias))
        expected = F.linear(*parts).float()
        torch.testing.assert_close(restored, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vnni", [True, False])
def test_int8dq_is_laid_out_for_the_device_it_moves_to(
    vnni: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_dynamic, "has_fast_int8_products", lambda: vnni)
    weight = Int8DynamicWeight.from_float(random_weight())
    assert weight.codes.dtype == (torch.int8 if vnni else torch.int32)
    there = weight.laid_out_for(torch.device("cuda"))
    assert there.codes.dtype == torch.int32
    torch.testing.assert_close(there.dequantize(), weight.dequantize())
    back = there.laid_out_for(torch.device("cpu"))
    assert torch.equal(back.codes, weight.codes)
    assert weight.to("meta").codes.dtype == torch.int32


@pytest.mark.parametrize("name", CONFIGS)
def test_saving_and_loading_gives_the_same_tensor(name: str, tmp_path: Path) -> None:
    linear = quantized(CONFIGS[name])
    torch.save(linear.state_dict(), tmp_path / "linear.pth")
    state = torch.load(tmp_path / "linear.pth", weights_only=True)
    other = nn.Linear(COLUMNS, ROWS, device="meta")
    other.load_state_dict(state, assign=True)
    x = torch.randn((3, COLUMNS))
    assert type(other.weight) is type(linear.weight)
    assert torch.equal(other(x), linear(x))


@pytest.mark.parametrize("name", CONFIGS)
def test_another_dtype_changes_the_activations_and_nothing_stored(name: str) -> None:
    linear = quantized(CONFIGS[name])
    exact, stored = linear.weight.dequantize(), tensor_bytes(linear.weight)
    linear.to(torch.bfloat16)
    assert linear.weight.dtype == linear.weight.dequantize().dtype == torch.bfloat16
    assert tensor_bytes(linear.weight) == stored
    assert linear(torch.randn((2, COLUMNS)).bfloat16()).dtype == torch.bfloat16
    linear.to(torch.float32)
    assert torch.equal(linear.weight.dequantize(), exact)


def test_the_hash_of_compiled_graphs_tells_formats_apart() -> None:
    hashes = {
        packed(quantized(config))._stable_hash_for_caching()
        for config in CONFIGS.values()
    }
    # The search for scales leaves no trace in a format.
    assert len(hashes) == len(CONFIGS) - 1
    again = quantized(CONFIGS["fp6"], random_weight() * 2)
    assert packed(again)._stable_hash_for_caching() in hashes


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("value", [0.0, 1.5, -1.5, 1e-42, 1e-30, 1e30])
def test_a_weight_that_is_one_value_everywhere_stays_near_it(
    name: str, value: float
) -> None:
    same = torch.full((ROWS, COLUMNS), value)
    restored = quantized(CONFIGS[name], same).weight.dequantize()
    expected = prune_2_4(same) if name.startswith("sparse") else same
    assert torch.isfinite(restored).all()
    assert ((restored - expected).abs() <= 0.01 * abs(value) + 1e-37).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_uintx_is_within_a_step_of_the_weight(bits: int) -> None:
    weight = random_weight()
    config = UintxWeightConfig(bits=bits, group_size=16)
    restored = quantized(config, weight).weight.dequantize()
    groups = weight.unflatten(1, (-1, 16))
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    step = ((high - low) / (2**bits - 1) * (1 + 2**-7)).unsqueeze(2)
    error = (restored.unflatten(1, (-1, 16)) - groups).abs()
    # Half a step; at the ends half a step each for the rounded zero and scale.
    assert (error <= step * 1.5).all()


@pytest.mark.parametrize(
    ("scheme", "power"),
    [
        ("int4wo-64", 2.0),
        ("int4wo-32", 2.0),
        ("uintx-2-64", 2.0),
        # What hqq lowers is the mean of |error| ** 0.7.
        ("int4wo-64-hqq", 0.7),
    ],
)
def test_scales_are_better_than_those_of_the_range(scheme: str, power: float) -> None:
    parsed, weight = Scheme.parse(scheme), random_weight()
    assert parsed.group_size is not None
    config = config_for(
        parsed, kernels="native", device=torch.device("cpu"), dtype=torch.float32
    )
    groups = weight.unflatten(1, (-1, parsed.group_size))
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    step = (high - low) / (2 ** (parsed.bits or 4) - 1)
    plain = (torch.round((groups - low) / step) * step + low).flatten(1)
    errors = [
        (restored - weight).abs().pow(power).mean().item()
        for restored in (quantized(config).weight.dequantize(), plain)
    ]
    assert errors[0] < errors[1]


def test_hqq_is_no_worse_by_its_own_measure_where_the_zero_is_whole() -> None:
    weight = random_weight()
    with_hqq, without = (
        quantized(UintxWeightConfig(bits=4, group_size=64, hqq=hqq), weight)
        for hqq in (True, False)
    )
    errors = [
        (each.weight.dequantize() - weight).abs().pow(0.7).mean().item()
        for each in (with_hqq, without)
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("scheme", "power"),
    [
        ("int8wo", 2.0),
        ("int8dq", 2.0),
        ("int4wo-32", 2.0),
        ("int4wo-64", 2.0),
        ("int4wo-32-hqq", 0.7),
        ("int4wo-64-hqq", 0.7),
        ("float8wo", 2.0),
    ],
)
def test_a_weight_is_no_further_than_in_torchaos_twin(
    scheme: str, power: float
) -> None:
    # torchao's int4 takes rows in sixteens.
    weight, cpu = random_weight()[:64] * 0.03, torch.device("cpu")
    errors = []
    for kernels in ("native", "torchao"):
        linear = nn.Linear(COLUMNS, len(weight), bias=False)
        linear.weight = nn.Parameter(weight)
        root = nn.ModuleDict({"linear": linear})
        parsed = Scheme.parse(scheme)
        config = config_for(parsed, kernels=kernels, device=cpu, dtype=torch.float32)
        quantize_(root, config)
        with torch.no_grad():
            # A layer's answer to the unit vectors is its weight, transposed.
            restored = root["linear"](torch.eye(COLUMNS)).T
        errors.append((restored - weight).abs().pow(power).mean().item())
    # hqq's scales are rounded to 16 bits here, and kept in float32 there.
    assert errors[0] <= errors[1] * (1.002 if power < 1 else 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: float) -> None:
    model = Transformer(preset("stories15M")).requires_grad_(False)
    model.get_parameter("layers.2.feed_forward.w2.weight")[3, 5] = value
    for scheme in ("int8wo", "uintx-4-32"):
        with pytest.raises(
            SpecError, match=r"model\.layers\.2\.feed_forward\.w2 .* not"
        ):
            quantize_model(model, scheme, kernels="native")


def test_torchaos_quantize_refuses_what_does_not_fit() -> None:
    broken = torch.full((ROWS, COLUMNS), float("nan"))
    with pytest.raises(SpecError, match="values that are not finite"):
        quantized(CONFIGS["fp6"], broken)
    with pytest.raises(SpecError, match="the group size 7 must divide K = 192"):
        quantized(UintxWeightConfig(bits=4, group_size=7))
    with pytest.raises(SpecError, match="the bits of uintx are 1 to 8"):
        UintxWeightConfig(bits=9)
    with pytest.raises(SpecError, match=r"granularity: 'group' .* row, tensor"):
        Float8DynamicConfig(granularity="group")


def test_uintx_2_8_takes_four_and_a_quarter_bits() -> None:
    weight = nn.Linear(4096, 4096, bias=False, device="meta")
    root = nn.ModuleDict({"linear": weight})
    quantize_(root, UintxWeightConfig(bits=2, group_size=8))
    assert tensor_bytes(root.get_parameter("linear.weight")) * 8 == 4.25 * 4096 * 4096

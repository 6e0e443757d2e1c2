"""The native schemes' tensors: what they keep, store, refuse and weigh."""

from itertools import permutations
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchao.quantization import quantize_

from llama_perf.kernels import products
from llama_perf.kernels.packing import from_lanes, unpack
from llama_perf.llama.transformer import tensor_bytes
from llama_perf.quantize.packed_tensor import PackedTensor
from llama_perf.quantize.sparse_marlin import SparseMarlinWeight, prune_2_4
from llama_perf.rows.schemes import Scheme
from scripts.doc_tables.figures import QUANTIZE_TOKENS, exact_int_mm
from tests.correctness.support.errors import refusal
from tests.correctness.support.schemes import cpu_config, schemes_on

GROUPED = ("int4wo-32", "int4wo-32-hqq", "uintx-4-64", "uintx-3-12", "uintx-2-8")
SCHEMES = schemes_on("native", grouped=(*GROUPED, "uintx-5-64-hqq"))
INT4 = ("int4wo-32", "int4wo-64", "int4wo-32-hqq", "int4wo-64-hqq")
TORCHAOS = ("int8wo", "int8dq", "float8wo", *INT4)
ROWS, COLUMNS = 75, 192
NAN, INF = float("nan"), float("inf")
MATRIX = "allowed: a matrix (N, K) of float32, float16, bfloat16"
NOT_FINITE = "(4, 64) has values that are not finite (NaN or infinite)"
BAD_WEIGHTS = (
    (torch.ones(2, 3, 64), f"is float32 (2, 3, 64); {MATRIX}"),
    (torch.ones(64), f"is float32 (64,); {MATRIX}"),
    (torch.ones(4, 64, dtype=torch.int8), f"is int8 (4, 64); {MATRIX}"),
    (torch.ones(4, 64).double(), f"is float64 (4, 64); {MATRIX}"),
    (torch.ones(4, 64).to(torch.float8_e4m3fn), f"is float8_e4m3fn (4, 64); {MATRIX}"),
    (torch.ones(0, 64), "is (0, 64); N and K must be 1 or more"),
    (torch.ones(4, 0), "is (4, 0); N and K must be 1 or more"),
    (torch.full((4, 64), NAN), NOT_FINITE),
    (torch.full((4, 64), -INF), NOT_FINITE),
    (torch.full((4, 64), INF), NOT_FINITE),
    (torch.full((4, 64), -3e38), "(4, 64) has values of up to 3e+38; allowed: 8.5e+37"),
)


def random_weight(seed: int = 0, shape: tuple[int, ...] = (ROWS, COLUMNS)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantized(
    scheme: str, weight: Tensor | None = None, *, kernels: str = "native"
) -> Any:
    """A linear, with a bias, of this weight or a random one."""
    weight = random_weight() if weight is None else weight
    linear = nn.Linear(*weight.shape[::-1]).requires_grad_(False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    quantize_(nn.ModuleDict({"linear": linear}), cpu_config(scheme, kernels))
    assert isinstance(linear.weight, PackedTensor) == (kernels == "native")
    return linear


def restored(name: str, weight: Tensor) -> Tensor:
    """The weight as it is once quantized."""
    dequantized: Tensor = quantized(name, weight).weight.dequantize()
    return dequantized


@pytest.mark.parametrize("name", SCHEMES)
def test_a_linear_multiplies_and_changes_dtype(name: str) -> None:
    linear = quantized(name)
    weight = linear.weight.dequantize()
    for shape in ((COLUMNS,), (1, COLUMNS), (2, 3, COLUMNS)):
        x = random_weight(1, shape)
        actual = linear(x)
        if name in QUANTIZE_TOKENS:
            values, scale = QUANTIZE_TOKENS[name](x.view(-1, COLUMNS))
            x = (values * scale).view(shape)
        # In float64, so that one side alone is rounded.
        parts = (tensor.double() for tensor in (x, weight, linear.bias))
        expected = F.linear(*parts).float()
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)

    x = random_weight(2, (3, COLUMNS))
    stored = tensor_bytes(linear.weight)
    linear.to(torch.bfloat16)
    assert linear.weight.dtype == linear.weight.dequantize().dtype == torch.bfloat16
    assert tensor_bytes(linear.weight) == stored
    assert linear(x.bfloat16()).dtype == torch.bfloat16
    linear.to(torch.float32)
    assert torch.equal(linear.weight.dequantize(), weight)


def test_int8dq_of_older_models_is_laid_out_anew() -> None:
    weight = quantized("int8dq").weight
    codes = unpack(weight.codes, 8, weight.columns).to(torch.int8)
    rows = from_lanes(codes, weight.rows)
    attributes = (weight.rows, weight.columns, weight.dtype)
    older = type(weight)(rows, weight.scale, *attributes)
    for device in ("cpu", "cuda"):
        anew = older.laid_out_for(torch.device(device))
        assert torch.equal(anew.codes, weight.codes)
    assert older.to("meta").codes.dtype == torch.int32


def test_the_hash_of_compiled_graphs_tells_formats_apart() -> None:
    hashes = {quantized(name).weight._stable_hash_for_caching() for name in SCHEMES}
    # The search for scales leaves no trace in a format.
    assert len(hashes) == len(SCHEMES) - 1
    again = quantized("fp6", random_weight() * 2)
    assert again.weight._stable_hash_for_caching() in hashes


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("value", [0.0, 1.5, -1.5, 1e-42, 1e-30, 1e30])
def test_a_weight_that_is_one_value_everywhere_stays_near_it(
    name: str, value: float
) -> None:
    same = torch.full((ROWS, COLUMNS), value)
    expected = prune_2_4(same) if name.startswith("sparse") else same
    error = (restored(name, same) - expected).abs()
    # No error that is not finite is that small.
    assert (error <= 0.01 * abs(value) + 1e-37).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_uintx_is_within_a_step_of_the_weight(bits: int) -> None:
    weight = random_weight()
    error = (restored(f"uintx-{bits}-16", weight) - weight).abs()
    groups = weight.unflatten(1, (-1, 16))
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    step = ((high - low) / (2**bits - 1) * (1 + 2**-7)).unsqueeze(2)
    # Half a step; at the ends half a step each for the rounded zero and scale.
    assert (error.view_as(groups) <= step * 1.5).all()


def of_the_range(name: str, weight: Tensor) -> Tensor:
    """The weight with the scales of each group's range."""
    scheme = Scheme.parse(name)
    groups = weight.unflatten(1, (-1, scheme.group_size or 1))
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    step = (high - low) / (2 ** (scheme.bits or 4) - 1)
    rounded: Tensor = torch.round((groups - low) / step) * step + low
    return rounded.flatten(1)


def of_torchao(name: str, weight: Tensor) -> Tensor:
    linear = quantized(name, weight, kernels="torchao")
    linear.bias = None
    with torch.no_grad(), patch("torch._int_mm", exact_int_mm):
        # A layer's answer to the unit vectors is its weight, transposed.
        answer: Tensor = linear(torch.eye(COLUMNS)).T
    return answer


def largest_error(scheme: str, weight: Tensor) -> Tensor:
    """What torchao's rounding can cost each weight of (N, K), by the formulas."""
    if size := Scheme.parse(scheme).group_size:
        groups = weight.unflatten(1, (-1, size))
        step = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
        # hqq moves the zero point, which may cut the ends off.
        steps = 2.0 if scheme.endswith("hqq") else 0.51
        bound = (step * steps).expand_as(groups).flatten(1)
        # The CPU kernel keeps scales and zeros in bfloat16: 8 bits.
        total: Tensor = bound + weight.abs() * 2**-7 + step.amax() * 8 * 2**-8
        return total
    peak = weight.abs().amax(-1, keepdim=True)
    if scheme.startswith("int8"):
        # torchao's step is the peak over 127.5, of a token's values too: 1 is read
        # as 127 / 127.5.
        activations = weight.abs() * (0.51 / 127.5 if scheme == "int8dq" else 0.0)
        return (peak / 127.5 * 0.51).expand_as(weight) + activations
    # e4m3: 3 bits after the point, and steps of 2**-9 below 2**-6; the largest is 448.
    return weight.abs() * 2**-4 * 1.01 + peak / 448 * 2**-10 * 1.01


@pytest.mark.parametrize(
    ("name", "other"),
    [
        *((name, of_the_range) for name in ("int4wo-32", "int4wo-64", "uintx-2-64")),
        ("int4wo-64-hqq", of_the_range),
        ("uintx-4-64-hqq", lambda name, weight: restored(name[:-4], weight)),
        *((name, of_torchao) for name in TORCHAOS),
    ],
)
def test_scales_are_better_than_others(name: str, other: Any) -> None:
    # torchao's int4 takes rows in sixteens.
    weight = random_weight()[:64] * 0.03
    ours, theirs = restored(name, weight), other(name, weight)
    if other is of_torchao:
        assert ((theirs - weight).abs() <= largest_error(name, weight)).all()
    # What hqq lowers is the mean of |error| ** 0.7.
    power = 0.7 if name.endswith("hqq") else 2.0
    ours, theirs = ((x - weight).abs().pow(power).mean() for x in (ours, theirs))
    # hqq's scales are rounded to 16 bits here, and kept in float32 by torchao.
    assert ours <= theirs * (1.002 if name.endswith("hqq") else 1.0)
    assert ours < theirs or other is of_torchao


def sparse(weight: Tensor) -> SparseMarlinWeight:
    return SparseMarlinWeight.from_float(weight, Scheme.parse("sparse-marlin"))


def test_pruning_keeps_the_two_largest_magnitudes_of_every_four() -> None:
    for order in permutations((1.0, -2.0, 3.0, -4.0)):
        pruned = prune_2_4(torch.tensor([order]))
        assert pruned.tolist() == [[x if abs(x) > 2 else 0.0 for x in order]]
    weight = random_weight(0, (37, 576))
    quads = prune_2_4(weight).unflatten(1, (-1, 4))
    assert (quads.count_nonzero(2) == 2).all()
    lost = weight.abs().unflatten(1, (-1, 4)).sort(2).values[:, :, :2].square().sum()
    difference = (prune_2_4(weight) - weight).square().sum()
    torch.testing.assert_close(difference, lost)
    # Of equal magnitudes the first.
    weight = torch.tensor([[1.0, -1.0, 1.0, 1.0, 0.0, 2.0, -2.0, 2.0]])
    assert prune_2_4(weight).tolist() == [[1.0, -1.0, 0.0, 0.0, 0.0, 2.0, -2.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_that_is_2_4_already_loses_nothing(dtype: torch.dtype) -> None:
    weight = random_weight(0, (37, 576)).to(dtype)
    pruned = prune_2_4(weight)
    assert pruned.dtype == dtype
    assert torch.equal(prune_2_4(pruned), pruned)
    stored = [sparse(one).packed() for one in (weight, pruned)]
    assert torch.equal(*map(products.dequantized, stored))
    # Quads of one value and of none are 2:4 too.
    pruned[::2, ::3] = 0
    pruned[5] = 0
    assert torch.equal(prune_2_4(pruned), pruned)


def test_sparse_values_on_the_grid_come_back_exactly() -> None:
    # Every code in a group, the one at the lower end with either sign.
    draw = torch.Generator().manual_seed(1)
    values = torch.randint(-7, 8, (32, 128), generator=draw).float()
    values[::2, 0], values[1::2, 0] = 8.0, -8.0
    weight = prune_2_4(values) * 0.25
    packed = sparse(weight)
    assert torch.equal(packed.dequantize(), weight)
    assert (packed.scale[:, :, ::2] < 0).all()
    assert (packed.scale[:, :, 1::2] > 0).all()


def test_pruned_weights_and_zeros_stay_and_kept_ones_are_within_a_step() -> None:
    weight = random_weight(0, (37, 576))
    weight[:, 128:256] = 0
    weight[3] = 0
    pruned, ours = prune_2_4(weight), sparse(weight).dequantize()
    assert not ours[pruned == 0].any()
    assert ours[4].any()
    for group, exact in zip(ours.split(128, 1), pruned.split(128, 1), strict=True):
        # Clipping and a rounded scale may cost a step at the ends.
        error = (group - exact).abs().amax(1)
        assert (error <= exact.abs().amax(1) / 8 * 1.5).all()


def test_sparse_scales_are_better_than_those_of_the_peak() -> None:
    weight = prune_2_4(random_weight(0, (64, 512)))
    groups = weight.unflatten(1, (-1, 128))
    step = groups.abs().amax(2, keepdim=True) / 7
    rounded = (torch.round(groups / step) * step).flatten(1)
    ours = (sparse(weight).dequantize() - weight).square().mean()
    assert ours < 0.9 * (rounded - weight).square().mean()


@pytest.mark.parametrize("value", [1e-42, 1e-38, 1e-30, 6e-8, 1e4, 1e30, 3e38])
def test_every_size_of_a_sparse_weight_is_kept_to_a_tenth(value: float) -> None:
    weight = prune_2_4(random_weight(0, (37, 576)).clamp(-1, 1) * value)
    packed = sparse(weight)
    assert torch.isfinite(packed.scale).all()
    assert (from_lanes(packed.scale, len(weight)) != 0).all()
    error = (packed.dequantize() - weight).double().norm()
    size = weight.double().norm()
    # The least normal number, below which a weight may become 0.
    assert error <= 0.1 * size + 1.2e-38 * weight.numel() ** 0.5


@pytest.mark.parametrize("name", SCHEMES)
def test_the_largest_weights_allowed_stay_finite(name: str) -> None:
    weight = random_weight().clamp(-1, 1) * 2.0**126
    weight[:, ::2] = 2.0**126
    weight[:, 1::4] = -(2.0**126)
    assert torch.isfinite(restored(name, weight)).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_torchaos_quantize_and_a_linear_are_told_what_fits(name: str) -> None:
    config, start = cpu_config(name), f"quantization: {name!r} is not allowed; "
    linear: Any = nn.Linear(64, 4, bias=False)
    root = nn.ModuleDict({"linear": linear})
    for weight, reason in BAD_WEIGHTS:
        linear.weight = nn.Parameter(weight, requires_grad=False)
        assert refusal(quantize_, root, config) == f"{start}the weight {reason}"
        assert type(linear.weight) is nn.Parameter

    linear = root["linear"] = quantized(name)
    again = f"the weight is quantized already: {type(linear.weight).__name__}"
    for other in SCHEMES:
        assert refusal(quantize_, root, cpu_config(other)).endswith(again)

    for x in (torch.ones(2, COLUMNS - 1), torch.tensor(1.0), torch.ones(COLUMNS, 1)):
        message = f"x: {tuple(x.shape)} is not allowed; the last dimension must be K ="
        assert refusal(linear, x) == f"{message} 192"
    message = "x: 'torch.int64' is not allowed; allowed: floating point"
    assert refusal(linear, torch.ones(2, COLUMNS, dtype=torch.int64)) == message

    words = nn.ModuleDict({"words": nn.Embedding(10, COLUMNS)})
    message = refusal(quantize_, words, config, lambda *pair: pair[1] == "words")
    assert message == f"{start}Embedding (10, {COLUMNS}) is no linear layer"
    assert words["words"](torch.tensor([3])).shape == (1, COLUMNS)


def test_torchaos_quantize_and_pruning_are_told_which_k_fits() -> None:
    """What else does not fit is test_apply.py's."""
    message = refusal(quantized, "int4wo-128")
    fitting = f"K = 192 of the weight ({ROWS}, 192); allowed: 32, 64"
    assert message.endswith(f"; the group size 128 must divide {fitting}")
    weight = torch.ones(5, 6)
    problem = "; K = 6 of the weight{} must be a multiple of 4"
    message = refusal(quantized, "sparse-marlin", weight)
    assert message.endswith(problem.format(" (5, 6)"))
    assert refusal(prune_2_4, weight).endswith(problem.format(""))

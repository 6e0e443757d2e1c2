"""Each scheme on a small model: what it changes, what it stores, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from llama_perf import quantize_model
from llama_perf.checkpoints.load import build_model
from llama_perf.errors import NotRunnable, SpecError
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.transformer import Transformer
from llama_perf.quantize.registry import config_for
from llama_perf.rows.schemes import Scheme
from llama_perf.rows.spec import KERNELS
from scripts.doc_tables.figures import exact_int_mm
from tests.correctness.support.schemes import schemes_on
from tests.correctness.support.weights_samples import tiny_weights

CPU = torch.device("cpu")
# Every K is a multiple of 64; 192 is none of 128 or 256, like SmolLM2's 576.
SMALL = ModelConfig(
    dim=192,
    n_layers=2,
    n_heads=6,
    n_kv_heads=2,
    intermediate_size=256,
    vocab_size=320,
    head_dim=32,
)
INT4 = ("int4wo-32", "int4wo-64", "int4wo-32-hqq", "int4wo-64-hqq")
# torchao's, whose error and size are known by formula.
SCHEMES = ("int8wo", "int8dq", "float8wo", *INT4)
GROUPED = (*INT4, "uintx-4-64", "uintx-3-4", "uintx-2-8-hqq")
BOTH = [
    (scheme, kernels)
    for kernels in KERNELS
    for scheme in schemes_on(kernels, grouped=GROUPED)
]


def small(config: ModelConfig = SMALL) -> Transformer:
    return build_model(tiny_weights(config), dtype=torch.float32, device=CPU)


def quantized(
    scheme: str, config: ModelConfig = SMALL, *, kernels: str = "torchao"
) -> Transformer:
    return quantize_model(small(config), scheme, kernels=kernels)


def linears(model: Transformer) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module


def is_plain(weight: Tensor) -> bool:
    return type(weight) in (nn.Parameter, Tensor)


@pytest.mark.parametrize(("scheme", "kernels"), BOTH)
def test_every_linear_is_quantized_and_nothing_else(scheme: str, kernels: str) -> None:
    model, before = quantized(scheme, kernels=kernels), small()
    found = dict(linears(model))
    assert len(found) == 5 * SMALL.n_layers + 1
    assert [name for name, linear in found.items() if is_plain(linear.weight)] == []
    others = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.removesuffix(".weight") not in found
    }
    assert len(others) == 2 * SMALL.n_layers + 2, "the embedding and the norms"
    for name, parameter in others.items():
        assert is_plain(parameter), name
        assert torch.equal(parameter, before.get_parameter(name)), name


@pytest.mark.parametrize(("scheme", "kernels"), BOTH)
def test_a_tied_output_is_quantized_and_its_embedding_is_not(
    scheme: str, kernels: str
) -> None:
    tied = replace(SMALL, tied_embeddings=True)
    before = small(tied).tok_embeddings.weight
    model = quantized(scheme, tied, kernels=kernels)
    assert not is_plain(model.output.weight)
    assert is_plain(model.tok_embeddings.weight)
    assert torch.equal(model.tok_embeddings.weight, before)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_weight_is_as_near_as_its_format_allows(scheme: str) -> None:
    before = dict(linears(small()))
    for name, linear in linears(quantized(scheme)):
        exact = before[name].weight.detach()
        # A layer's answer to the unit vectors is its weight, transposed.
        with patch("torch._int_mm", exact_int_mm):
            found = linear(torch.eye(linear.in_features)).T
        error = (found - exact).abs()
        assert error.any(), f"{name} is not quantized"
        assert (error <= largest_error(scheme, exact)).all(), name


def largest_error(scheme: str, weight: Tensor) -> Tensor:
    """What rounding to the format can cost each weight of (N, K), by the formulas."""
    if scheme.startswith("int4wo"):
        size = Scheme.parse(scheme).group_size
        assert size is not None
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


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_size_is_that_of_the_byte_formula(scheme: str) -> None:
    model = quantized(scheme)
    shapes = [(linear.out_features, linear.in_features) for _, linear in linears(model)]
    norms = 4 * SMALL.dim * (2 * SMALL.n_layers + 1)
    stored = sum(linear_bytes(scheme, rows, columns) for rows, columns in shapes)
    assert model.weight_bytes() == stored + norms


def linear_bytes(scheme: str, rows: int, columns: int) -> int:
    if scheme.startswith("int4wo"):
        size = Scheme.parse(scheme).group_size
        assert size is not None
        # Two codes a byte; a scale and a zero in float32 for each group.
        return rows * columns // 2 + rows * columns // size * 2 * 4
    # One byte a weight, and for each row a scale in float32; of int8 a zero too.
    return rows * columns + rows * (4 if scheme == "float8wo" else 5)


@pytest.mark.parametrize(
    ("scheme", "kernels"),
    [
        ("int4wo-128", "torchao"),
        ("int4wo-128-hqq", "torchao"),
        ("int4wo-128", "native"),
        ("uintx-3-18", "native"),
        ("uintx-1-384-hqq", "native"),
    ],
)
def test_a_group_that_does_not_divide_k_is_refused_before_anything_changes(
    scheme: str, kernels: str
) -> None:
    model = small()
    size = Scheme.parse(scheme).group_size
    with pytest.raises(SpecError) as caught:
        quantize_model(model, scheme, kernels=kernels)
    # Of K = 192 and of K = 256.
    allowed = "32, 64" if scheme.startswith("int4wo") else "1, 2, 4, 8, 16, 32, 64"
    assert str(caught.value) == (
        f"quantization: {scheme!r} is not allowed; the group size {size} must divide"
        f" K = 192 of model.layers.0.attention.wqkv; allowed: {allowed}"
    )
    assert all(is_plain(linear.weight) for _, linear in linears(model))


@pytest.mark.parametrize(("scheme", "kernels"), BOTH)
def test_quantizing_twice_is_refused(scheme: str, kernels: str) -> None:
    model = quantized(scheme, kernels=kernels)
    size = model.weight_bytes()
    for again in ("int8wo", scheme):
        with pytest.raises(SpecError, match="this model is quantized already"):
            quantize_model(model, again, kernels=kernels)
    assert model.weight_bytes() == size


@pytest.mark.parametrize(
    ("scheme", "allowed"),
    [
        ("int5wo", "allowed: int8wo, int8dq, "),
        ("int4wo", "allowed: int8wo, int8dq, "),
        ("INT8WO", "allowed: int8wo, int8dq, "),
        ("", "allowed: int8wo, int8dq, "),
        ("int4wo-63", "the group size of int4wo is 32, 64, 128, 256"),
        ("uintx-9-64", "the bits of uintx are 1 to 8"),
    ],
)
def test_an_unknown_scheme_is_told_what_is_allowed(scheme: str, allowed: str) -> None:
    with pytest.raises(SpecError) as caught:
        quantize_model(small(), scheme)
    start = f"quantization: {scheme!r} is not allowed; {allowed}"
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)


def test_unknown_kernels_are_told_what_is_allowed() -> None:
    with pytest.raises(SpecError, match="kernels: 'fast' is not allowed; allowed: na"):
        quantize_model(small(), "int8wo", kernels="fast")


@pytest.mark.parametrize("scheme", ["fp6", "sparse-marlin", "autoquant", "uintx-4-64"])
def test_a_scheme_that_torchao_dropped_says_so_on_its_kernels(scheme: str) -> None:
    with pytest.raises(NotRunnable, match=rf"^scheme {scheme} is not built on "):
        quantize_model(small(), scheme, kernels="torchao")


@pytest.mark.parametrize(
    ("scheme", "device", "dtype", "reason"),
    [
        ("float8dq-tensor", "cpu", torch.bfloat16, "needs a CUDA card with float8"),
        ("float8dq-row", "cpu", torch.bfloat16, "needs a CUDA card with float8"),
        ("int4wo-64", "cuda", torch.float32, "only bfloat16 activations on CUDA"),
        ("int4wo-64-hqq", "cuda", torch.float16, "CUDA, not float16"),
    ],
)
def test_a_scheme_for_another_device_or_dtype_says_so(
    scheme: str, device: str, dtype: torch.dtype, reason: str
) -> None:
    with pytest.raises(NotRunnable, match=reason) as caught:
        config_for(
            Scheme.parse(scheme),
            kernels="torchao",
            device=torch.device(device),
            dtype=dtype,
        )
    assert scheme in str(caught.value)


def test_a_layer_that_the_kernels_would_skip_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # torchao logs what it skips and goes on: here a quantize_ that does nothing.
    monkeypatch.setattr("torchao.quantization.quantize_", lambda *_: None)
    with pytest.raises(SpecError, match=r"left model\.layers\.0\..* unquantized"):
        quantized("int8wo")

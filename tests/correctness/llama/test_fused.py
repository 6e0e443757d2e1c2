"""The fused kernels against the modules: interpreted on a CPU, for real on a card.

Triton reads TRITON_INTERPRET when it is imported, so the interpreter runs in a process
of its own: `test_in_the_interpreter` runs this file there.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("triton", reason="Triton is not installed")

from llama_perf.errors import NotRunnable, ValuesError
from llama_perf.kernels.triton import launch, launch_fused
from llama_perf.llama.fused import FusedStep
from llama_perf.llama.fused_weights import packed
from llama_perf.llama.layers import Linear
from llama_perf.llama.options import GREEDY
from llama_perf.measure.prepare import PreparedRow
from llama_perf.measure.value_check import OPERATORS, check_row_values, warm_up_row
from llama_perf.quantize.apply import make_quantizer
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.engines import distance, greedy, new_model
from tests.correctness.support.errors import refusal
from tests.correctness.support.fused import (
    CLOSE,
    TURNED_CODES,
    both,
    check,
    limit_of,
    small_model,
)

GPU = torch.device("cuda")


def linear(scheme: str | None, weight: Tensor, device: torch.device) -> Linear:
    """A layer of `weight` (N, K), as `scheme` quantizes it."""
    layer = Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight.contiguous().to(device), requires_grad=False)
    if scheme is not None:
        make = partial(make_quantizer, device=device, dtype=weight.dtype)
        make(scheme, kernels="native")(nn.Sequential(layer), "layer")
    return layer


# One of each way through the kernels; every format's sums are those of the kernels that
# test_products.py has. That of int8dq is float32: the modules round to bfloat16, by up
# to a quarter of a step, what they round to int8 then, and the kernel does not.
@pytest.mark.parametrize(
    ("scheme", "dtype", "shape", "lengths"),
    [
        (None, torch.float32, (1, 3), None),
        ("int4wo-32", torch.bfloat16, (2, 3), None),
        ("uintx-3-8", torch.float16, (1, 3), None),
        ("int8dq", torch.float32, (2, 3), None),
        ("fp6", torch.bfloat16, (1, 3), None),
        ("sparse-marlin", torch.float16, (2, 3), None),
        ("fp6", torch.float32, (3, 2), [2, 1, 2]),
        # Of many tokens it runs on the modules.
        ("int8wo", torch.float32, (1, 11), None),
    ],
    ids=str,
)
def test_a_prompt_and_steps_are_those_of_the_modules(
    scheme: str | None,
    dtype: torch.dtype,
    shape: tuple[int, int],
    lengths: list[int] | None,
    card: torch.device,
) -> None:
    pair = both(small_model(scheme, card, dtype), batch_size=shape[0])
    prompt = torch.arange(math.prod(shape), device=card).view(shape) + 5
    own = None if lengths is None else torch.tensor(lengths, device=card)
    check(pair, prompt, limit_of(scheme, dtype), own)
    assert isinstance(pair[1]._fused, FusedStep)
    assert not pair[1]._fused._split_counter.any()


@pytest.mark.parametrize(
    ("kind", "dtype"), [("int8", torch.float32), ("fp8", torch.float16)], ids=str
)
def test_codes_of_a_quantized_cache_are_those_of_the_modules(
    kind: str, dtype: torch.dtype, card: torch.device
) -> None:
    model = small_model("int8wo", card, dtype)
    pair = both(model, batch_size=2, kv_cache=kind)
    prompt = torch.tensor([[7, 8], [1, 12]], device=card)
    check(pair, prompt, max(TURNED_CODES[kind], CLOSE[dtype]))
    (one,), (other,) = (engine.caches for engine in pair)
    pairs = ((one.k_cache, other.k_cache), (one.v_cache, other.v_cache))
    same = [(left == right)[:, :, :2].float().mean() for left, right in pairs]
    # The modules round to float16 twice where the kernel does once: half a unit of a
    # value is up to 0.06 of a step between codes.
    assert sum(same) / 2 > (0.99 if dtype == torch.float32 else 0.94)


@pytest.mark.parametrize(
    ("scheme", "dtype", "columns"),
    [
        *((scheme, torch.float32, 1304) for scheme in (None, "int8dq", "uintx-2-8")),
        ("sparse-marlin", torch.float32, 1304),
        # On tensor cores: one of each way, and columns that fill no step.
        ("int8wo", torch.bfloat16, 1302),
        ("fp6", torch.float16, 1560),
        ("int4wo-64", torch.bfloat16, 1600),
        ("uintx-4-64", torch.float16, 1600),
        ("uintx-3-8", torch.bfloat16, 3080),
        ("uintx-2-8", torch.float16, 3080),
        ("sparse-marlin", torch.bfloat16, 3084),
        # The last of two splits has fewer steps, and begins before its own columns.
        ("int8dq", torch.float32, 1240),
        ("int4wo-64", torch.float16, 2240),
        ("sparse-marlin", torch.bfloat16, 4612),
    ],
    ids=str,
)
def test_splits_of_the_columns_are_joined(
    scheme: str | None, dtype: torch.dtype, columns: int, card: torch.device
) -> None:
    """Of many columns, whose parts several programs sum, with all there is around."""
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randn(2, 20, columns, generator=generator) / columns**0.5
    layers = [linear(scheme, weight, card) for weight in drawn.to(dtype)]
    x = torch.randn(2, columns, generator=generator).to(card, dtype)
    norm_weight = (torch.rand(columns, generator=generator) + 0.5).to(card, dtype)
    first, second = (packed(layer.weight, "weight", GPU) for layer in layers)
    assert launch_fused.launch_here(x, first, weights=2).splits > 1
    counter = torch.zeros(2, dtype=torch.int32, device=card)
    root = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
    normed = (x * root * norm_weight).to(dtype)
    gate, up = (layer(normed) for layer in layers)
    norm = launch_fused.Norm(weight=norm_weight, eps=1e-5)
    for _ in range(2):
        actual = launch_fused.project(x, [first, second], counter, norm=norm)
        assert distance(actual, F.silu(gate) * up) < limit_of(scheme, dtype)
    before = torch.randn(2, 20, generator=generator).to(card, dtype)
    residual = before.clone()
    assert launch_fused.project(x, [first], counter, residual=residual) is residual
    assert distance(residual, before + layers[0](x)) < limit_of(scheme, dtype)
    assert not counter.any()


@pytest.mark.parametrize(
    "scheme", [None, "int8wo", pytest.param("int4wo-32", marks=pytest.mark.slow)]
)
def test_values_of_a_fused_row_are_checked_and_tokens_are_the_modules(
    scheme: str | None, card: torch.device
) -> None:
    modules, fused = both(small_model(scheme, card))
    prompt = torch.tensor([[3, 1, 4]], device=card)
    assert torch.equal(greedy(fused, prompt, 4), greedy(modules, prompt, 4))
    row = RowSpec(model="small", dtype="float32", fused=True, max_new_tokens=3)
    prepared = PreparedRow(
        row=row, engine=fused, prompt=prompt[:, :2], weights="synthetic", build_s=0.0
    )
    generator = torch.Generator(device=card).manual_seed(0)
    check = check_row_values(prepared, warm_up_row(prepared, generator))
    assert (check.against, check.tokens) == (OPERATORS, 3)
    with pytest.raises(ValuesError, match=f"against the {OPERATORS}"):
        check_row_values(prepared, warm_up_row(prepared, generator, damaged=True))


def test_what_cannot_be_fused_says_why() -> None:
    row: dict[str, Any] = {"model": "Llama-2-7b-chat-hf", "fused": True}
    for changed, reason in (
        ({"quantization": "int8wo", "kernels": "torchao"}, "kernels = 'native'"),
        ({"attention": "sdpa"}, "attention = 'decode'"),
        ({"quantization": "float8dq-row"}, "float8dq-row has no fused kernels"),
        ({"batch_size": 9}, "at most 8"),
    ):
        assert reason in refusal(RowSpec, **row, **changed)
    assert RowSpec(**row).id.endswith(".fused")


def test_weights_and_shapes_without_a_kernel_are_named(card: torch.device) -> None:
    narrow = new_model(device=card)
    for model, batch, reason in (
        (small_model("float8dq-row", card), 1, "fused: output.weight, Float8"),
        (narrow, 1, "heads are 8 wide; allowed: multiples of 16"),
        (narrow, 9, "a batch of 9 is not allowed"),
    ):
        assert reason in refusal(both, model, error=NotRunnable, batch_size=batch)


@pytest.mark.parametrize("norm", [True, False], ids=["normed", "plain"])
def test_a_peak_that_was_left_is_the_one_that_would_be_found(
    norm: bool, card: torch.device
) -> None:
    """To the last bit, by kernels that take one, leave one and clear another."""
    drawn = torch.randn(4, 20, 32).to(card)
    weight = packed(linear("int8dq", drawn[0].T, card).weight, "weight", GPU)
    x, residual, norms = drawn[1, :3, :20], drawn[2, :3], drawn[3].abs()
    next_norm_weight, own = norms[0], norms[1, :20]
    counter = torch.zeros(2, dtype=torch.int32, device=card)
    normed = launch_fused.Norm(weight=own, eps=1e-5) if norm else None
    peak = torch.zeros(8, dtype=torch.int32, device=card)
    peak[:3] = (x * own if norm else x).abs().amax(1).view(torch.int32)
    written, cleared = torch.zeros_like(peak), torch.full_like(peak, 7)
    peaks = launch_fused.Peaks(
        read=peak, written=written, cleared=cleared, next_norm_weight=next_norm_weight
    )
    run = partial(launch_fused.project, x, [weight], counter, norm=normed)
    expected = run(residual=residual.clone())
    assert torch.equal(run(residual=residual.clone(), peaks=peaks), expected)
    left = written.view(torch.float32)
    assert torch.equal(left[:3], (expected * next_norm_weight).abs().amax(1))
    assert not written[3:].any()
    assert not cleared.any()
    written.zero_()
    more: Any = {"norm": normed, "peaks": launch_fused.Peaks(written=written)}
    gated = launch_fused.project(x, [weight, weight], counter, **more)
    assert torch.equal(left[:3], gated.abs().amax(1))


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("scheme", ["int8dq", "fp6", "sparse-marlin"])
def test_what_is_not_finite_is_not_lost_by_rounding(
    scheme: str, value: float, card: torch.device
) -> None:
    """Neither in the product nor in the peak that is left for the next one."""
    drawn = torch.randn(3, 32, 32).to(card, torch.float16)
    weight = packed(linear(scheme, drawn[0], card).weight, "weight", GPU)
    x, residual = drawn[1, :3].clone(), drawn[2, :3].clone()
    x[1] = value
    counter = torch.zeros(2, dtype=torch.int32, device=card)
    peak = torch.zeros(8, dtype=torch.int32, device=card)
    ones = torch.ones(32, dtype=torch.float16, device=card)
    for peaks in (
        launch_fused.Peaks(written=peak, next_norm_weight=ones),
        launch_fused.Peaks(read=peak),
    ):
        # The interpreter's numpy warns of infinity times zero.
        with np.errstate(invalid="ignore"):
            x = launch_fused.project(
                x, [weight], counter, residual=residual.clone(), peaks=peaks
            )
        assert not x[1].isfinite().any()
        assert x[::2].isfinite().all()
        assert peak.view(torch.float32)[:3].isfinite().tolist() == [True, False, True]


# By peaks of its own columns a program has another power of two, and only what is
# smaller than float16's normal numbers, or a digit's step, is rounded differently.
@pytest.mark.parametrize(
    ("scheme", "dtype", "limit"),
    [
        ("int8dq", torch.float32, 0.0),
        ("fp6", torch.float16, 2e-3),
        ("sparse-marlin", torch.float16, 2e-3),
    ],
    ids=str,
)
def test_peaks_are_left_for_all_products_behind_another(
    scheme: str,
    dtype: torch.dtype,
    limit: float,
    card: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a step all; of a prompt those of attention, and the head, find their own.

    Step after step: none sees what another one left.
    """
    model = small_model(scheme, card, torch.float16, n_layers=2)
    prompt = torch.tensor([[3, 1], [7, 8]], device=card)
    of_modules = both(small_model(scheme, card, dtype, n_layers=2), batch_size=2)
    check(of_modules, prompt, limit_of(scheme, dtype))
    peaked: list[bool] = []

    def spied(kernel: Any, how: Any, arguments: Any, **more: Any) -> None:
        named = dict(zip(kernel.arg_names, arguments, strict=False))
        peaked.append(named["peaks_in"] is not None)
        launch.run(kernel, how, arguments, **more)

    def logits() -> Tensor:
        _, fused = both(model, batch_size=2)
        return fused.observe(prompt, max_new_tokens=3, observed=3, sampling=GREEDY)[1]

    def without_reading(
        run: Callable[..., Tensor], *arguments: Any, **more: Any
    ) -> Tensor:
        if "peaks" in more:
            more["peaks"] = replace(more["peaks"], read=None)
        else:
            more["peaks_in"] = None
        return run(*arguments, **more)

    monkeypatch.setattr(launch_fused, "run", spied)
    actual = logits()
    of_prompt = [True, False, True, True] * 2 + [False]
    assert peaked == of_prompt + [True] * 2 * len(of_prompt)
    for name in ("project", "project_heads"):
        run = partial(without_reading, getattr(launch_fused, name))
        monkeypatch.setattr(launch_fused, name, run)
    assert distance(actual, logits()) <= limit
    assert not any(peaked[3 * len(of_prompt) :])

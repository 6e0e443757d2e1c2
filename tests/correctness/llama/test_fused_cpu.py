"""The fused layer of a CPU against the modules, over the same weights."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from llama_perf.errors import NotRunnable, ValuesError
from llama_perf.kernels import cpp_library, layer
from llama_perf.measure.prepare import PreparedRow
from llama_perf.measure.value_check import OPERATORS, check_row_values, warm_up_row
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.cpp_operators import NEEDED, torch_threads
from tests.correctness.support.engines import CPU, distance, greedy, new_model
from tests.correctness.support.errors import refusal
from tests.correctness.support.fused import (
    CLOSE,
    SMALL,
    TURNED_CODES,
    both,
    check,
    limit_of,
    small_model,
)

pytestmark = NEEDED


@pytest.fixture(params=[1, 3], autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of three some take the last rows of gate and the first of up at once."""
    with torch_threads(request.param):
        yield


@pytest.mark.parametrize(
    ("scheme", "dtype", "shape", "kind", "lengths"),
    [
        (None, torch.float32, (1, 1), None, None),
        (None, torch.bfloat16, (2, 4), None, None),
        ("int8wo", torch.float32, (1, 8), "int8", None),
        ("int8dq", torch.float32, (2, 3), None, None),
        ("int4wo-32", torch.float32, (1, 5), "fp8", None),
        ("uintx-3-8", torch.float16, (1, 1), None, None),
        ("uintx-4-4", torch.float32, (2, 1), "int8", None),
        ("fp6", torch.float32, (3, 2), "fp8", [2, 1, 2]),
        ("sparse-marlin", torch.float32, (2, 2), None, [1, 2]),
        ("float8wo", torch.float32, (1, 5), None, None),
        # Of many tokens it runs on the modules.
        ("int8wo", torch.float32, (1, 11), None, None),
    ],
    ids=str,
)
def test_a_prompt_and_a_step_are_those_of_the_modules(
    scheme: str | None,
    dtype: torch.dtype,
    shape: tuple[int, int],
    kind: str | None,
    lengths: list[int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    operator = layer.decode_layer

    def counted(*arguments: Any) -> None:
        calls.append(arguments)
        operator(*arguments)

    monkeypatch.setattr(layer, "decode_layer", counted)
    model = small_model(scheme, CPU, dtype)
    prompt = torch.arange(math.prod(shape)).view(shape) + 5
    own = None if lengths is None else torch.tensor(lengths)
    turned = 0.0 if kind is None else TURNED_CODES[kind]
    pair = both(model, batch_size=shape[0], kv_cache=kind)
    check(pair, prompt, max(limit_of(scheme, dtype), turned), own)
    assert len(calls) == (2 if prompt.numel() <= 8 else 1)


def test_codes_of_a_cache_are_the_modules_codes() -> None:
    """But for one in a hundred, which a last bit may turn by one; scales as well."""
    model = small_model("int8wo", CPU)
    prompt = torch.arange(8).view(1, 8)
    for kind in TURNED_CODES:
        pair = both(model, kv_cache=kind)
        for one in pair:
            one.prefill(prompt)
        both_caches = (one.caches[0].tensors for one in pair)
        for of_modules, of_layer in zip(*both_caches, strict=True):
            assert of_modules is not None
            steps = of_layer.float() - of_modules.float()
            assert steps.count_nonzero() <= 0.01 * steps.numel()
            assert (steps.abs() <= 1).all()


def test_a_gate_beyond_the_exponentials_range_is_the_modules() -> None:
    model = small_model(None, CPU)
    for name, weight in model.named_parameters():
        if "w1" in name:
            weight.data.mul_(1e5)
    modules, fused = both(model)
    prompt = torch.tensor([[3, 1, 4]])
    with torch.no_grad():
        expected, actual = modules.prefill(prompt), fused.prefill(prompt)
    assert distance(actual, expected) < CLOSE[torch.float32]


def test_tokens_are_the_modules_and_a_fused_rows_values_are_checked() -> None:
    modules, fused = both(small_model("int8wo", CPU, n_layers=2))
    prompt = torch.tensor([[3, 1, 4]])
    assert torch.equal(greedy(fused, prompt, 9), greedy(modules, prompt, 9))
    row = RowSpec(
        model="small", dtype="float32", device="cpu", fused=True, max_new_tokens=3
    )
    assert row.id.endswith("cpu.eager.fused.new-3")
    prepared = PreparedRow(
        row=row, engine=fused, prompt=prompt, weights="synthetic", build_s=0.0
    )
    generator = torch.Generator().manual_seed(0)
    values = check_row_values(prepared, warm_up_row(prepared, generator))
    assert (values.against, values.tokens) == (OPERATORS, 3)
    with pytest.raises(ValuesError, match=f"against the {OPERATORS}"):
        check_row_values(prepared, warm_up_row(prepared, generator, damaged=True))


def test_what_does_not_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = new_model(replace(SMALL, head_dim=8))
    assert distance(*(one.prefill(torch.tensor([[1]])) for one in both(narrow))) < 1e-5
    for model, options, reason in (
        (small_model("float8dq-row", CPU), {}, "fused: output.weight, Float8"),
        (narrow, {"batch_size": 9}, "a batch of 9 is not allowed; allowed: at most 8"),
        (narrow, {"attention": "sdpa"}, "it needs attention 'decode', not 'sdpa'"),
    ):
        assert reason in refusal(both, model, error=NotRunnable, **options)
    problem = "C++ operators are not compiled here: no g++"
    monkeypatch.setattr(cpp_library, "load", lambda: problem)
    assert refusal(both, narrow, error=NotRunnable) == f"fused: {problem}"

"""A fused step by a kernel of the user's own, against the modules."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_perf import EngineOptions
from llama_perf.errors import NotRunnable, ValuesError
from llama_perf.llama.compiler import compiler_settings
from llama_perf.llama.engine import Engine
from llama_perf.llama.fused_product import in_plain_torch
from llama_perf.llama.transformer import Transformer, TransformerBlock
from llama_perf.measure.prepare import PreparedRow, prepare_row
from llama_perf.measure.value_check import check_row_values, warm_up_row
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.engines import CPU
from tests.correctness.support.errors import refusal
from tests.correctness.support.fused import (
    CLOSE,
    TURNED_CODES,
    both,
    check,
    small_model,
)
from tests.correctness.support.plugin_project import write_tiny


class Counting:
    """The product in plain torch, `wrong` where that is asked for."""

    def __init__(self, *, wrong: float = 1.0) -> None:
        self.calls: list[int] = []
        self._wrong = wrong

    def __call__(self, x: Tensor, weights: Any, **around: Any) -> Tensor:
        self.calls.append(len(weights))
        return in_plain_torch(x * self._wrong, weights, **around)


def own_engine(model: Transformer, product: Any, **fields: Any) -> Engine:
    options = EngineOptions(cache_size=24, fused=True, own_product=product, **fields)
    return Engine(model, options)


@pytest.mark.parametrize(
    ("shape", "kind", "lengths", "parts"),
    [
        ((1, 1), None, None, {}),
        ((2, 3), "int8", None, {"qk_norm": True, "sliding_window": 2}),
        ((2, 2), "fp8", [1, 2], {"qkv_bias": True, "nope_layers": (0,)}),
    ],
    ids=str,
)
def test_a_prompt_and_a_step_are_those_of_the_modules(
    any_device: torch.device,
    shape: tuple[int, int],
    kind: str | None,
    lengths: list[int] | None,
    parts: dict[str, Any],
) -> None:
    model = small_model("int8wo", any_device, **parts)
    fields: dict[str, Any] = {"batch_size": shape[0], "kv_cache": kind}
    modules, _ = both(model, changed="compile", **fields)
    product = Counting()
    fused = own_engine(model, product, **fields)
    prompt = torch.arange(shape[0] * shape[1], device=any_device).view(shape)
    own = None if lengths is None else torch.tensor(lengths, device=any_device)
    limit = CLOSE[torch.float32] if kind is None else TURNED_CODES[kind]
    check((modules, fused), prompt, limit, own)
    # Query, key and value; output; gate and up; down; then the head.
    assert product.calls == [1, 1, 2, 1, 1] * 2


def test_a_gate_with_a_bias_is_two_products() -> None:
    model = small_model("int8wo", CPU, mlp_bias=True, output_bias=True)
    modules, _ = both(model, changed="compile")
    product = Counting()
    check((modules, own_engine(model, product)), torch.ones(1, 2).long(), 1e-5)
    assert product.calls == [1, 1, 1, 1, 1, 1] * 2


def test_a_linear_that_is_not_quantized_has_the_modules_product() -> None:
    model = small_model("int8wo", CPU)
    block, plain = (one.layers[0] for one in (model, small_model(None, CPU)))
    assert isinstance(block, TransformerBlock)
    assert isinstance(plain, TransformerBlock)
    block.feed_forward.w1 = plain.feed_forward.w1
    modules, _ = both(model, changed="compile")
    product = Counting()
    check((modules, own_engine(model, product)), torch.ones(1, 2).long(), 1e-5)
    assert product.calls == [1, 1, 1, 1] * 2


# A compiled row without a kernel of its own, and this step eager, are tested always.
@pytest.mark.slow
def test_a_compiled_step_has_the_kernel_in_its_graph() -> None:
    model = small_model("int8wo", CPU)
    modules, _ = both(model)
    with compiler_settings():
        fused = own_engine(model, in_plain_torch, compile=True)
        check((modules, fused), torch.ones(1, 2).long(), 1e-5)


def test_what_has_no_such_step_is_refused() -> None:
    model = small_model("int8wo", CPU)
    options = EngineOptions(fused="persistent", own_product=in_plain_torch)
    message = refusal(Engine, model, options, error=NotRunnable)
    assert message.startswith(
        "fused: 'persistent' is not allowed; a scheme of your own"
    )
    many = EngineOptions(fused=True, own_product=in_plain_torch, batch_size=9)
    assert "a batch of 9" in refusal(Engine, model, many, error=NotRunnable)


def test_a_wrong_kernel_has_no_speed(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny")
    fields: Any = {"dtype": "float32", "device": "cpu", "max_new_tokens": 4}
    row = RowSpec(model="tiny", quantization="int8wo", **fields)
    prepared = prepare_row(row, checkpoints=tmp_path)

    def checked(product: Counting) -> None:
        options = EngineOptions.of(replace(row, fused=True), own_product=product)
        engine = Engine(prepared.engine.architecture, options)
        fused: PreparedRow = replace(prepared, engine=engine)
        check_row_values(fused, warm_up_row(fused, torch.Generator().manual_seed(0)))

    right = Counting()
    checked(right)
    assert right.calls
    with pytest.raises(ValuesError, match=r"dB of signal to noise against"):
        checked(Counting(wrong=1.01))

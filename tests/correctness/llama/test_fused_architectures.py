"""Fused layers with biases, norms of heads, a window, or no RoPE, against the modules.

On the CPU's operator, and on Triton's kernels: interpreted, or for real on a card.
"""

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from llama_perf.errors import NotRunnable
from tests.correctness.support.errors import refusal
from tests.correctness.support.fused import (
    TURNED_CODES,
    both,
    check,
    limit_of,
    small_model,
)
from tests.correctness.support.kernel_samples import INTERPRETED

WINDOW: dict[str, Any] = {"sliding_window": 2}
QWEN3: dict[str, Any] = {"qk_norm": True, "n_layers": 2, "nope_layers": (1,)}
ALL: dict[str, Any] = {**QWEN3, **WINDOW, "window_layers": (0,), "qkv_bias": True}
BIASES: dict[str, Any] = {"qkv_bias": True, "output_bias": True, "mlp_bias": True}


@pytest.mark.parametrize(
    ("scheme", "dtype", "kind", "parts", "batch"),
    [
        ("int8wo", torch.float32, None, {"qkv_bias": True}, 1),
        (None, torch.float32, None, QWEN3, 1),
        ("int4wo-32", torch.bfloat16, None, ALL, 2),
        ("int8wo", torch.float32, "int8", WINDOW, 1),
        (None, torch.float32, "fp8", ALL, 1),
    ],
    ids=str,
)
def test_a_prompt_and_a_step_are_those_of_the_modules(
    scheme: str | None,
    dtype: torch.dtype,
    kind: str | None,
    parts: dict[str, Any],
    batch: int,
    any_device: torch.device,
) -> None:
    pair = both(
        small_model(scheme, any_device, dtype, **parts), batch_size=batch, kv_cache=kind
    )
    # With the step's token it is longer than the window.
    prompt = torch.arange(3 * batch, device=any_device).view(batch, 3) + 5
    turned = 0.0 if kind is None else TURNED_CODES[kind]
    check(pair, prompt, max(limit_of(scheme, dtype), turned))


def test_sequences_of_several_lengths_have_windows_of_their_own(
    any_device: torch.device,
) -> None:
    pair = both(small_model(None, any_device, **ALL), batch_size=2)
    prompt = torch.arange(8, device=any_device).view(2, 4) + 5
    lengths = torch.tensor([4, 1], device=any_device)
    check(pair, prompt, limit_of(None), lengths)


def test_biases_of_every_linear_on_a_cpu_and_refused_on_a_card(
    any_device: torch.device,
) -> None:
    model = small_model("int8wo", any_device, **BIASES)
    if any_device.type == "cpu" and not INTERPRETED:
        check(both(model), torch.tensor([[5, 6, 7]]), limit_of("int8wo"))
        return
    assert refusal(both, model, error=NotRunnable) == (
        "fused: biases of other linears than queries, keys and values have no fused"
        " kernel on CUDA"
    )


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"qkv_bias": True}, "biases"),
        ({"qk_norm": True}, "norms of queries and keys"),
        (WINDOW, "a sliding window"),
        ({"nope_layers": (0,)}, "layers without RoPE"),
    ],
    ids=str,
)
def test_one_kernel_for_all_layers_refuses_them_by_name(
    parts: dict[str, Any], what: str, card: torch.device
) -> None:
    from llama_perf.llama.persistent import PersistentStep

    model = small_model("int8wo", card, **parts)
    assert refusal(PersistentStep, model, error=NotRunnable) == (
        f"fused: 'persistent' has no kernel for {what}; allowed: fused = true"
    )

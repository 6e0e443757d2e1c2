"""What a fused step launches on a card, through Triton's real JIT, without one."""

import os
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llama_perf.llama.config import preset
from tests.correctness.support.launches import Launches, generation

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)
LAYERS = 2
LLAMA_2, LLAMA_3 = "Llama-2-7b-chat-hf", "Meta-Llama-3-8B"
each_model = pytest.mark.parametrize("model", [LLAMA_2, LLAMA_3])
each_temperature = pytest.mark.parametrize("temperature", [0.8, 0.0])


def kernels(launches: Launches) -> list[str]:
    return [launch["kernel"] for launch in launches]


def first(step: Launches, kernel: str) -> dict[str, Any]:
    return next(launch for launch in step if launch["kernel"] == kernel)


@each_temperature
@each_model
def test_a_step_is_five_launches_a_layer_and_three(
    model: str, temperature: float
) -> None:
    """Torch's operators counted too; at most five a layer and four are promised."""
    step = generation(model, temperature=temperature).step
    assert Counter(kernels(step)) == {
        "start": 1,
        "project_heads": LAYERS,
        "attend_in_splits": LAYERS,
        "project": 3 * LAYERS + 1,
        "choose": 1,
    }
    assert len(step) <= 5 * LAYERS + 4
    assert all(launch["dependent"] for launch in step)


@each_temperature
def test_a_known_length_of_prompt_is_one_graph(temperature: float) -> None:
    """Outside it the prompt is copied, a seed drawn, and every token returned."""
    generated = generation(LLAMA_2, temperature=temperature)
    outside = ["random_"] * (temperature > 0) + ["copy_", "clone", "clone"]
    assert kernels(generated.outside) == outside
    counts = Counter(kernels(generated.first))
    assert counts["project_heads"] == LAYERS
    assert counts["project"] == 3 * LAYERS + 1
    assert counts["start"] == counts["choose"] == 1


@each_model
@pytest.mark.parametrize("scheme", ["int8wo", "int8dq", "int4wo-64"])
def test_no_scheme_takes_more(model: str, scheme: str) -> None:
    step, unquantized = generation(model, scheme).step, generation(model).step
    assert kernels(step) == kernels(unquantized)


def test_as_many_programs_run_as_the_card_has_processors_for() -> None:
    """Attention in twice as many as it has; products in four times, in splits of K.

    Before sm_90 no launch is dependent.
    """
    heads, dim = preset(LLAMA_2).n_heads, preset(LLAMA_2).dim
    for capability, processors in ((90, 132), (80, 108), (90, 66)):
        card = {"capability": capability, "multiprocessors": processors}
        step = generation(LLAMA_2, **card).step
        attention, output = first(step, "attend_in_splits"), first(step, "project")
        # One program a head more than attend: it prefetches what the next kernel reads.
        assert attention["grid"][:2] == [heads, 2 * processors // heads + 1]
        blocks = dim // 16
        assert output["grid"][:2] == [blocks, 4 * processors // blocks]
        assert {launch["dependent"] for launch in step} == {capability >= 90}


def test_a_short_cache_leaves_programs_for_what_the_next_kernel_reads() -> None:
    """On an H200 a step of Llama-3-8B is 1.16 times as fast as with 32 programs."""
    attention = first(generation(LLAMA_3).step, "attend_in_splits")
    # 256 positions are four stretches for every one of 8 heads.
    assert attention["grid"][:2] == [8, 2 * 132 // 8]


def test_the_cards_key_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_perf.kernels.triton import launch_fused

    gpus = iter([SimpleNamespace(key="card")])
    monkeypatch.setattr(launch_fused, "device_of", lambda _device: next(gpus))
    launch_fused._card_key.cache_clear()
    for _ in range(3):
        assert launch_fused._card_key(torch.device("cuda")) == "card"
    launch_fused._card_key.cache_clear()

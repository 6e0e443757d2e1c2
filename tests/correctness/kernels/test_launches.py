"""What a fused step launches on a card, through Triton's real JIT, without one."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch

from llama_perf.llama.presets import preset
from tests.correctness.support.launches import generation, launches

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)


LAYERS = 2


@pytest.mark.parametrize("temperature", [0.8, 0.0], ids=["drawn", "greedy"])
@pytest.mark.parametrize("model", ["Llama-2-7b-chat-hf", "Meta-Llama-3-8B"])
def test_a_step_is_five_launches_a_layer_and_three(
    model: str, temperature: float
) -> None:
    """Torch's operators counted too; at most five a layer and four are promised."""
    found = generation(model, "none", temperature=temperature).step
    assert Counter(each["kernel"] for each in found) == {
        "start": 1,
        "project_heads": LAYERS,
        "attend_in_splits": LAYERS,
        "project": 3 * LAYERS + 1,
        "choose": 1,
    }
    assert len(found) <= 5 * LAYERS + 4
    assert all(each["dependent"] for each in found)


@pytest.mark.parametrize("temperature", [0.8, 0.0], ids=["drawn", "greedy"])
def test_a_known_length_of_prompt_is_one_graph(temperature: float) -> None:
    """Beside it the prompt is copied, a seed drawn, and each token handed out."""
    found = generation("Llama-2-7b-chat-hf", "none", temperature=temperature)
    outside = ["random_"] * (temperature > 0) + ["copy_", "clone", "clone"]
    assert [each["kernel"] for each in found.outside] == outside
    kernels = Counter(each["kernel"] for each in found.first)
    assert kernels["project_heads"] == LAYERS
    assert kernels["project"] == 3 * LAYERS + 1
    assert kernels["start"] == kernels["choose"] == 1


@pytest.mark.parametrize("model", ["Llama-2-7b-chat-hf", "Meta-Llama-3-8B"])
@pytest.mark.parametrize("scheme", ["int8wo", "int8dq", "int4wo-64"])
def test_no_scheme_takes_more(model: str, scheme: str) -> None:
    found = [each["kernel"] for each in launches(model, scheme)]
    assert found == [each["kernel"] for each in launches(model, "none")]


def test_before_sm_90_no_launch_is_dependent() -> None:
    found = launches("Llama-2-7b-chat-hf", "none", capability=80, multiprocessors=108)
    assert not any(each["dependent"] for each in found)


def test_as_many_programs_run_as_the_card_has_processors_for() -> None:
    """Attention in twice as many as it has; products in four times, in splits of K."""
    model = "Llama-2-7b-chat-hf"
    heads, dim = preset(model).n_heads, preset(model).dim
    for capability, processors in ((90, 132), (80, 108), (90, 66)):
        found = launches(
            model, "none", capability=capability, multiprocessors=processors
        )
        attention = next(e for e in found if e["kernel"] == "attend_in_splits")
        # One a head beside those that attend: it asks for what the next kernel reads.
        assert attention["grid"][:2] == [heads, 2 * processors // heads + 1]
        output = next(e for e in found if e["kernel"] == "project")
        blocks = dim // 16
        assert output["grid"][:2] == [blocks, 4 * processors // blocks]


def test_a_short_cache_leaves_programs_for_what_the_next_kernel_reads() -> None:
    """On an H200 a step of Llama-3-8B is 1.16 times as fast as with 32 programs."""
    attention = next(
        each
        for each in launches("Meta-Llama-3-8B", "none")
        if each["kernel"] == "attend_in_splits"
    )
    # 256 positions are four stretches of each of 8 heads.
    assert attention["grid"][:2] == [8, 2 * 132 // 8]


def test_the_cards_key_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_perf.devices.cuda import CudaDevice
    from llama_perf.kernels.triton import launch_fused

    asked: list[CudaDevice] = []

    def key(gpu: CudaDevice) -> str:
        asked.append(gpu)
        return "card"

    monkeypatch.setattr(CudaDevice, "key", property(key))
    launch_fused._card_key.cache_clear()
    for _ in range(3):
        launch_fused._card_key(torch.device("cuda"))
    assert len(asked) == 1
    launch_fused._card_key.cache_clear()

"""Logits of each architecture against transformers' own class, in every path.

A prompt and the tokens behind it are longer than a window.
"""

from typing import Any

import pytest
import torch

from llama_perf import load_model
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.transformer import Transformer
from tests.correctness.support import architectures
from tests.correctness.support.architectures import IDS, MODELS, expected
from tests.correctness.support.engines import distance, logits_after

PROMPT, STEPS = 10, 8
PATHS: dict[str, dict[str, Any]] = {
    "decode": {},
    "decode in chunks": {"prefill_chunk": 4},
    "decode, a cache as long as the text": {"cache_size": PROMPT + STEPS},
    "sdpa": {"attention": "sdpa"},
    "sdpa in chunks": {"attention": "sdpa", "prefill_chunk": 4},
    "sdpa, rows of the mask": {"attention": "sdpa", "linear_causal_mask": True},
}
CASES = [
    *((path, None) for path in PATHS),
    *(("decode", "int8"), ("decode in chunks", "fp8")),
    *(("sdpa in chunks", "int8"), ("sdpa", "fp8")),
]
each_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Transformer]:
    return {
        name: load_model(architectures.save(name, tmp_path_factory.mktemp("model")))
        for name in MODELS
    }


def assert_close(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


@each_model
def test_logits_of_a_text(name: str, loaded: dict[str, Transformer]) -> None:
    assert_close(loaded[name].logits(IDS), expected(name))


@each_model
@pytest.mark.parametrize(("path", "kind"), CASES)
def test_logits_of_a_prompt_and_of_each_token_behind_it(
    name: str, path: str, kind: str | None, loaded: dict[str, Transformer]
) -> None:
    options = {"batch_size": 2, "cache_size": 24, "kv_cache": kind, **PATHS[path]}
    engine = Engine(loaded[name], EngineOptions(**options))
    actual = logits_after(engine, IDS, PROMPT, STEPS)
    wanted = expected(name, kind)[:, PROMPT - 1 : PROMPT + STEPS]
    if kind is None:
        assert_close(actual, wanted)
    # A last bit turns a code over now and then. Another window costs a hundred times
    # as much, see below.
    assert distance(actual, wanted) < 5e-3


@pytest.mark.parametrize("window", [0, architectures.WINDOW - 1])
def test_the_comparison_sees_another_window(
    window: int, loaded: dict[str, Transformer]
) -> None:
    for name in (name for name in MODELS if "window" in name):
        engine = Engine(loaded[name], EngineOptions(batch_size=2, cache_size=24))
        for cache in engine.caches:
            cache.window = min(cache.window, window)
        actual = logits_after(engine, IDS, PROMPT, STEPS)
        wanted = expected(name)[:, PROMPT - 1 : PROMPT + STEPS]
        assert distance(actual, wanted) > 0.1

"""Small models and rows on the CPU or on a card.

On a card the activations are bfloat16. On the CPU, whose bfloat16 products are slow,
they are float32.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.reader import SyntheticWeights
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import GREEDY, EngineOptions
from llama_perf.llama.transformer import Transformer
from llama_perf.results.measurement import Measurement
from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.weights_samples import TINY, all_weights, write_json

# Widths that every scheme's kernels take.
SMALL = replace(TINY, dim=256, intermediate_size=512, vocab_size=512, head_dim=64)
# torchao's int4 for CUDA pads a weight's columns to a multiple of 1024.
WIDE = replace(SMALL, dim=1024, n_heads=16, intermediate_size=1024)
MODELS = {"small": SMALL, "wide": WIDE}
PROMPT = torch.tensor([[11, 7, 400, 3, 92]])
# What bfloat16 leaves of logits near 4: half a unit in the last place is 2^-7, and
# two sums of them in another order differ by a few.
TIE = {torch.bfloat16: 0.08, torch.float32: 1e-4}
CLOSE = {torch.bfloat16: 2e-2, torch.float32: 1e-5}
# Relative error of the logits of SMALL, in which the errors of all layers add up:
# about one and a half times what each scheme shows on the CPU.
QUANTIZED = {"int8wo": 0.04, "int8dq": 0.06, "float8wo": 0.15, "int4wo-64": 0.45}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(request.param)


def write_checkpoint(folder: Path, model: ModelConfig) -> None:
    reader = SyntheticWeights(model, dtype=torch.float32, device=torch.device("cpu"))
    folder.mkdir()
    torch.save(all_weights(reader), folder / "model.pth")
    config = {
        "hidden_size": model.dim,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "intermediate_size": model.intermediate_size,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": model.norm_eps,
    }
    write_json(folder / "config.json", config)


def dtype_on(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def small_model(device: torch.device, model: str = "small") -> Transformer:
    dtype = dtype_on(device)
    reader = SyntheticWeights(MODELS[model], dtype=dtype, device=device)
    return build_model(reader, dtype=dtype, device=device)


def small_row(device: torch.device, **fields: Any) -> RowSpec:
    dtype = str(dtype_on(device)).removeprefix("torch.")
    wanted: dict[str, Any] = {"max_new_tokens": 8, "num_samples": 2, **fields}
    return RowSpec(model="small", device=device.type, dtype=dtype, **wanted)


def measured(result: RowResult) -> Measurement:
    assert result.status is Status.MEASURED, result.reason
    assert result.measurement is not None
    return result.measurement


def relative_error(actual: Tensor, wanted: Tensor) -> float:
    return float((actual - wanted).norm() / wanted.norm())


def greedy(model: Transformer, *, compile: bool, count: int) -> Tensor:
    engine = Engine(model, EngineOptions(cache_size=64, compile=compile))
    prompt = PROMPT.to(model.device)
    return engine.generate(prompt, max_new_tokens=count, sampling=GREEDY).cpu()


def assert_equal_up_to_ties(
    model: Transformer, expected: Tensor, actual: Tensor
) -> None:
    """Greedy tokens (1, N); the first that differs had a logit as good as the best."""
    differs = (expected != actual).nonzero()
    if len(differs):
        place = int(differs[0, 1])
        logits = model.logits(expected[:, :place])[0, -1]
        chosen = logits[torch.stack((expected[0, place], actual[0, place]))]
        gap = (chosen[0] - chosen[1]).abs().item()
        assert gap < TIE[model.dtype], f"token {place} differs, {gap} apart"

"""Small models and rows on the CPU or on a card.

On a card the activations are bfloat16. On the CPU, whose bfloat16 products are slow,
they are float32.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.reader import SyntheticWeights
from llama_perf.llama.transformer import Transformer
from tests.correctness.support.weights_samples import TINY

# Widths that every scheme's kernels take.
SMALL = replace(TINY, dim=256, intermediate_size=512, vocab_size=512, head_dim=64)
# torchao's int4 for CUDA pads a weight's columns to a multiple of 1024.
WIDE = replace(SMALL, dim=1024, n_heads=16, intermediate_size=1024)
MODELS = {"small": SMALL, "wide": WIDE}
PROMPT = torch.tensor([[11, 7, 400, 3, 92]])
# What bfloat16 leaves of logits near 4: half a unit in the last place is 2^-7, and
# two sums of them in another order differ by a few.
TIE = {torch.bfloat16: 0.08, torch.float32: 1e-4}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(request.param)


def dtype_on(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def small_model(device: torch.device, model: str = "small") -> Transformer:
    dtype = dtype_on(device)
    reader = SyntheticWeights(MODELS[model], dtype=dtype, device=device)
    return build_model(reader, dtype=dtype, device=device)


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

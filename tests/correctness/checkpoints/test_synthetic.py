"""Synthetic weights: every tensor, the same each time, sane through deep models."""

import dataclasses
import math

import pytest
import torch

from llama_perf.checkpoints.reader import SyntheticWeights, layer_shapes
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.transformer import Transformer
from tests.correctness.support.weights_samples import TINY, all_weights

CPU = torch.device("cpu")
TIED = dataclasses.replace(TINY, tied_embeddings=True)
WIDE = dataclasses.replace(
    TINY, dim=256, n_layers=8, head_dim=64, intermediate_size=512, vocab_size=1000
)


def make(
    config: ModelConfig = TINY, dtype: torch.dtype = torch.float32
) -> SyntheticWeights:
    return SyntheticWeights(config, dtype=dtype, device=CPU)


def test_has_every_tensor_of_the_model() -> None:
    before = torch.get_rng_state()
    shapes = {name: t.shape for name, t in all_weights(make()).items()}
    assert torch.equal(before, torch.get_rng_state()), "not from the global generator"
    with torch.device("meta"):
        model = Transformer(TINY)
    assert shapes == {name: t.shape for name, t in model.state_dict().items()}
    assert make().source == "synthetic"
    assert list(make().layer(0)) == [name for name, _ in layer_shapes(TINY)]
    assert list(make(TIED).final()) == ["norm.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_same_values_in_any_order(dtype: torch.dtype) -> None:
    first, second = make(dtype=dtype), make(dtype=dtype)
    backwards = {index: second.layer(index) for index in (1, 0)}
    for index in range(2):
        for name, tensor in first.layer(index).items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, backwards[index][name])


def test_tensors_differ() -> None:
    weights = all_weights(make())
    gates = [t for name, t in weights.items() if "w1" in name or "w3" in name]
    assert len({tuple(t.flatten()[:4].tolist()) for t in gates}) == len(gates) == 4


def test_standard_deviations() -> None:
    reader = make(WIDE)
    layer = reader.layer(3)
    residual = 1 / math.sqrt(2 * WIDE.n_layers)
    wanted = {
        "attention.wqkv.weight": 1 / math.sqrt(256),
        "attention.wo.weight": residual / math.sqrt(256),
        "feed_forward.w1.weight": 1 / math.sqrt(256),
        "feed_forward.w3.weight": 1 / math.sqrt(256),
        "feed_forward.w2.weight": residual / math.sqrt(512),
        "attention_norm.weight": 0.02,
        "ffn_norm.weight": 0.02,
    }
    for name, std in wanted.items():
        tolerance = 0.02 if layer[name].ndim == 2 else 0.2
        assert layer[name].std().item() == pytest.approx(std, rel=tolerance), name
        middle = 1.0 if layer[name].ndim == 1 else 0.0
        assert layer[name].mean().item() == pytest.approx(middle, abs=0.01), name
    assert reader.embedding().std().item() == pytest.approx(1 / 16, rel=0.02)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_stay_sane_through_126_layers(tied: bool) -> None:
    config = dataclasses.replace(
        TINY, dim=64, head_dim=16, n_layers=126, vocab_size=500, tied_embeddings=tied
    )
    weights = all_weights(make(config))
    weights.setdefault("output.weight", weights["tok_embeddings.weight"])
    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(weights, assign=True)
    logits = model.logits(torch.arange(12).reshape(1, 12))
    assert logits.isfinite().all()
    assert 0.5 < logits.std().item() < 2.0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_made_on_the_device() -> None:
    device = torch.device("cuda")
    first, second = (
        SyntheticWeights(TINY, dtype=torch.bfloat16, device=device) for _ in range(2)
    )
    assert first.embedding().device.type == "cuda"
    assert torch.equal(first.embedding(), second.embedding())

"""Synthetic weights: every tensor, the same each time, sane through deep models."""

import math
from dataclasses import replace

import pytest
import torch

from llama_perf.checkpoints.reader import SyntheticWeights, layer_shapes
from llama_perf.llama.transformer import Transformer
from tests.correctness.quantize.test_apply import small
from tests.correctness.support.weights_samples import TINY, all_weights, tiny_weights


def test_every_tensor_of_the_model_and_each_another() -> None:
    before, reader = torch.get_rng_state(), tiny_weights()
    weights = all_weights(reader)
    assert torch.equal(before, torch.get_rng_state()), "not from the global generator"
    with torch.device("meta"):
        wanted = Transformer(TINY).state_dict()
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    assert shapes == {name: tensor.shape for name, tensor in wanted.items()}
    assert reader.source == "synthetic"
    assert list(reader.layer(0)) == [name for name, _ in layer_shapes(TINY)]
    tied = tiny_weights(replace(TINY, tied_embeddings=True))
    assert list(tied.final()) == ["norm.weight"]
    gates = [t for name, t in weights.items() if "w1" in name or "w3" in name]
    assert len({tuple(t.flatten()[:4].tolist()) for t in gates}) == len(gates) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_same_values_in_any_order(dtype: torch.dtype, device: torch.device) -> None:
    readers = (SyntheticWeights(TINY, dtype=dtype, device=device) for _ in range(2))
    first, second = readers
    backwards = [second.final(), second.layer(1), second.layer(0)]
    for forwards in (first.layer(0), first.layer(1), first.final()):
        again = backwards.pop()
        for name, tensor in forwards.items():
            assert (tensor.dtype, tensor.device.type) == (dtype, device.type)
            assert torch.equal(tensor, again[name])
    assert torch.equal(first.embedding(), second.embedding())


def test_standard_deviations() -> None:
    deep = replace(TINY, n_layers=8, dim=256, head_dim=64, intermediate_size=512)
    reader = tiny_weights(replace(deep, vocab_size=1000))
    layer = reader.layer(3)
    # A residual stream has two additions in each of 8 layers.
    for name, std in {
        "attention.wqkv": 1 / math.sqrt(256),
        "attention.wo": 1 / math.sqrt(16 * 256),
        "feed_forward.w1": 1 / math.sqrt(256),
        "feed_forward.w3": 1 / math.sqrt(256),
        "feed_forward.w2": 1 / math.sqrt(16 * 512),
        "attention_norm": 0.02,
        "ffn_norm": 0.02,
    }.items():
        tensor = layer.pop(f"{name}.weight")
        tolerance, middle = (0.02, 0.0) if tensor.ndim == 2 else (0.2, 1.0)
        assert tensor.std().item() == pytest.approx(std, rel=tolerance), name
        assert tensor.mean().item() == pytest.approx(middle, abs=0.01), name
    assert not layer
    assert reader.embedding().std().item() == pytest.approx(1 / 16, rel=0.02)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_stay_sane_through_126_layers(tied: bool) -> None:
    deep = replace(TINY, n_layers=126, dim=64, head_dim=16, vocab_size=500)
    model = small(replace(deep, tied_embeddings=tied))
    logits = model.logits(torch.arange(12).reshape(1, 12))
    assert logits.isfinite().all()
    assert 0.5 < logits.std().item() < 2.0

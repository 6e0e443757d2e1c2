"""Every scheme generates the same greedy tokens as before the package was rebuilt.

The tokens were recorded at revision 90278db. Only tokens are kept whose logit leads the
next best by 6 % of the logits' standard deviation or more, so that another processor's
rounding cannot change them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llama_perf import Sampling, generate, load_model, quantize_model
from llama_perf.rows.schemes import AUTOQUANT, FAMILIES, Scheme

GOLDEN: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "support" / "golden_tokens.json").read_text()
)
CONFIG = LlamaConfig(
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=256,
    vocab_size=256,
    rms_norm_eps=1e-5,
    max_position_embeddings=128,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with weights drawn by numpy, alike on every machine."""
    folder = tmp_path_factory.mktemp("golden")
    generator = np.random.default_rng(0)
    model = LlamaForCausalLM(CONFIG).requires_grad_(False)
    weights = model.state_dict()
    # The layers' are drawn last.
    for name in sorted(weights, key=lambda name: "layers" in name):
        if "norm" not in name:
            drawn = generator.standard_normal(tuple(weights[name].shape), np.float32)
            weights[name].copy_(torch.from_numpy(drawn * 0.08))
    model.model.embed_tokens.weight.mul_(12)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("key", GOLDEN)
def test_greedy_tokens_stay_the_same(key: str, checkpoint: Path) -> None:
    scheme, kernels = key.split(".")
    golden = GOLDEN[key]
    model = load_model(checkpoint)
    if scheme != "none":
        model = quantize_model(model, scheme, kernels=kernels)
    prompt = (torch.arange(12) * golden["start"] + golden["start"]) % CONFIG.vocab_size
    count, greedy = len(golden["tokens"]), Sampling(temperature=0)
    tokens = generate(model, prompt[None], max_new_tokens=count, sampling=greedy)
    assert tokens[0, len(prompt) :].tolist() == golden["tokens"]


def test_every_family_of_schemes_has_golden_tokens() -> None:
    recorded = {key.split(".")[0] for key in GOLDEN} - {"none"}
    families = {Scheme.parse(name).family for name in recorded}
    assert families <= set(FAMILIES) - set(AUTOQUANT)
    # Those of today; tokens of a new family may be recorded later.
    assert len(families) >= 9

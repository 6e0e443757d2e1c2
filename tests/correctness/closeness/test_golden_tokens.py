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
from safetensors.torch import save_file

from llama_perf import Sampling, generate, load_model, quantize_model
from llama_perf.rows.schemes import AUTOQUANT, FAMILIES, Scheme
from tests.correctness.support.weights_samples import CONFIG_JSON, write_json

GOLDEN: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "support" / "golden_tokens.json").read_text()
)
DIM, KV_DIM, HIDDEN, VOCABULARY = 128, 64, 256, 256
LINEARS = {
    "self_attn.q_proj": (DIM, DIM),
    "self_attn.k_proj": (KV_DIM, DIM),
    "self_attn.v_proj": (KV_DIM, DIM),
    "self_attn.o_proj": (DIM, DIM),
    "mlp.gate_proj": (HIDDEN, DIM),
    "mlp.up_proj": (HIDDEN, DIM),
    "mlp.down_proj": (DIM, HIDDEN),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with two layers drawn by numpy, alike on every machine."""
    folder = tmp_path_factory.mktemp("golden")
    generator = np.random.default_rng(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(generator.standard_normal(shape, np.float32) * 0.08)

    weights = {
        "model.embed_tokens.weight": draw(VOCABULARY, DIM) * 12,
        "lm_head.weight": draw(VOCABULARY, DIM),
        "model.norm.weight": torch.ones(DIM),
    }
    for layer in range(2):
        for name, shape in LINEARS.items():
            weights[f"model.layers.{layer}.{name}.weight"] = draw(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = torch.ones(DIM)
    save_file(weights, folder / "model.safetensors")
    config = CONFIG_JSON | {"hidden_size": DIM, "vocab_size": VOCABULARY}
    config |= {"intermediate_size": HIDDEN, "max_position_embeddings": 128}
    write_json(folder / "config.json", config)
    return folder


@pytest.mark.parametrize("key", GOLDEN)
def test_greedy_tokens_stay_the_same(key: str, checkpoint: Path) -> None:
    scheme, kernels = key.split(".")
    golden = GOLDEN[key]
    model = load_model(checkpoint)
    if scheme != "none":
        model = quantize_model(model, scheme, kernels=kernels)
    prompt = (torch.arange(12) * golden["start"] + golden["start"]) % VOCABULARY
    count, greedy = len(golden["tokens"]), Sampling(temperature=0)
    tokens = generate(model, prompt[None], max_new_tokens=count, sampling=greedy)
    assert tokens[0, len(prompt) :].tolist() == golden["tokens"]


def test_every_family_of_schemes_has_golden_tokens() -> None:
    recorded = {key.split(".")[0] for key in GOLDEN} - {"none"}
    families = {Scheme.parse(name).family for name in recorded}
    assert families <= set(FAMILIES) - set(AUTOQUANT)
    # Those of today; tokens of a new family may be recorded later.
    assert len(families) >= 9

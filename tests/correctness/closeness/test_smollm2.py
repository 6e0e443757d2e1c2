"""Real weights: SmolLM2 as this project and as transformers read the same GGUF."""

from functools import cache

import gguf
import numpy as np
import pytest
import torch

from llama_perf import generate
from llama_perf.checkpoints.tokenizers.files import load_tokenizer
from llama_perf.llama.options import GREEDY
from scripts.doc_tables.figures import perplexity
from scripts.doc_tables.smollm2 import (
    TEXT,
    reference_logits,
    smollm2_path,
    tokens,
    unquantized,
)
from tests.correctness.support.tokenizer_samples import smollm2_reference


@cache
def their_logits() -> torch.Tensor:
    """transformers' configuration, dequantization, layout of weights, and model."""
    from transformers import AutoModelForCausalLM

    path = smollm2_path()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        # gguf takes three times as long to read a vocabulary from a memory map.
        patch.setattr(np, "memmap", lambda path, **_: np.fromfile(path, np.uint8))
        # Both are asked for anew many times, for the same.
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, name, cache(getattr(gguf, name)))
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True, dtype=torch.float32
        )
    with torch.no_grad():
        logits: torch.Tensor = model(tokens()).logits
    return logits


def test_the_text_is_long_enough_and_tokenized_alike() -> None:
    assert tokens().shape[1] > 400
    assert smollm2_reference().encode(TEXT) == tokens()[0].tolist()


def test_logits_and_perplexity_equal_transformers() -> None:
    torch.testing.assert_close(reference_logits(), their_logits(), rtol=1e-4, atol=1e-3)
    ours = perplexity(reference_logits(), tokens())
    assert ours == pytest.approx(perplexity(their_logits(), tokens()), rel=1e-5)
    assert 5 < ours < 30, "a model that does not read English has hundreds"


def test_the_capital_of_france_is_paris() -> None:
    tokenizer, text = load_tokenizer(smollm2_path()), "The capital of France is"
    prompt = torch.tensor([tokenizer.encode(text)])
    out = generate(unquantized(), prompt, max_new_tokens=4, sampling=GREEDY)
    assert tokenizer.decode(out[0].tolist()).startswith(f"{text} Paris")

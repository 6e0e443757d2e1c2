"""GGUF files of each architecture, as llama.cpp's converter writes them.

The converter interleaves the rows of queries and keys of a llama and of a SmolLM3, and
leaves those of a Qwen in Hugging Face's order.
"""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from llama_perf import load_model
from llama_perf.checkpoints.find import open_weights
from tests.correctness.support.architectures import IDS, WINDOW, expected, random_model
from tests.correctness.support.weights_samples import file_refusal

SLIDING = "attention.sliding_window"
# What llama.cpp knows of each: its name, and fields besides the sizes.
GGUF_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama with biases": ("llama", {}),
    "mistral with a window": ("llama", {SLIDING: WINDOW}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "smollm3 as published": ("smollm3", {}),
}


def interleaved(tensor: Tensor, heads: int) -> Tensor:
    """Rows in halves of each head, side by side, written row by row."""
    made: list[Tensor] = []
    for head in tensor.chunk(heads):
        first, second = head.chunk(2)
        for pair in zip(first, second, strict=True):
            made += pair
    return torch.stack(made).reshape(tensor.shape)


def write(
    name: str, folder: Path, *, tokens: list[str] | None = None, **more: Any
) -> Path:
    model = random_model(name)
    theirs: Any = model.config
    kind, fields = GGUF_MODELS[name]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], 4)
    path = folder / "tiny.gguf"
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(theirs.num_hidden_layers)
    writer.add_context_length(theirs.max_position_embeddings)
    writer.add_embedding_length(theirs.hidden_size)
    writer.add_feed_forward_length(theirs.intermediate_size)
    writer.add_head_count(theirs.num_attention_heads)
    writer.add_head_count_kv(theirs.num_key_value_heads)
    writer.add_layer_norm_rms_eps(theirs.rms_norm_eps)
    writer.add_rope_freq_base(theirs.rope_parameters["rope_theta"])
    if width := getattr(theirs, "head_dim", None):
        writer.add_key_length(width)
        writer.add_value_length(width)
    if tokens is not None:
        writer.add_token_list(tokens)
    for field, value in {**fields, **more}.items():
        writer.add_uint32(f"{kind}.{field}", value)
    for key, tensor in model.state_dict().items():
        rows = tensor
        if not kind.startswith("qwen") and ("q_proj" in key or "k_proj" in key):
            queries = "q_proj" in key
            heads = "num_attention_heads" if queries else "num_key_value_heads"
            rows = interleaved(tensor, getattr(theirs, heads))
        own = names.get_name(key, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(str(own), rows.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", GGUF_MODELS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    actual = load_model(write(name, tmp_path)).logits(IDS)
    torch.testing.assert_close(actual, expected(name), rtol=1e-4, atol=1e-4)


def test_a_window_of_a_qwen_is_refused_since_its_layers_are_not_named(
    tmp_path: Path,
) -> None:
    window: Any = {SLIDING: WINDOW}
    path = write("qwen2", tmp_path, **window)
    problem = f"qwen2.{SLIDING}: {WINDOW} is not allowed; allowed: 0"
    assert file_refusal(path) == problem


def test_a_vocabulary_of_two_sizes(tmp_path: Path) -> None:
    tokens = [f"t{index}" for index in range(97)]
    path = write("qwen3", tmp_path, tokens=tokens, vocab_size=97)
    assert open_weights(path).config.vocab_size == 97
    problem = file_refusal(write("qwen3", tmp_path, tokens=tokens, vocab_size=96))
    assert problem == (
        "the number of tokenizer.ggml.tokens: 97 contradicts qwen3.vocab_size: 96;"
        " correct or remove one of them"
    )

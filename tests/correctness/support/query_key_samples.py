"""Queries and keys of each layer after RoPE, here and in transformers; and their files.

An error of a few rows of a query or key projection hardly changes logits, so these are
compared row by row.
"""

import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf
import torch
import torch.nn.functional as F
from gguf.quants import quantize
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llama_perf.llama.transformer import Transformer
from tests.correctness.support import weights_samples as samples

QueriesAndKeys = list[tuple[Tensor, Tensor]]
"""Of each layer, (heads, T, head_dim); here in interleaved order, there in halves."""
LAYERS, DIM, HIDDEN, VOCABULARY = 2, 96, 64, 48
TOKENS = torch.tensor([[1, 5, 9, 40, 7, 22, 13, 2, 31, 47, 18, 3]])
_KINDS = gguf.GGMLQuantizationType
_ROTATED = re.compile(r"\.[qk]_proj\.(weight|bias)$")


def make_model(
    heads: int, kv_heads: int, head_dim: int, hidden: int = HIDDEN
) -> LlamaForCausalLM:
    """A small model with random weights, norms among them."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": hidden,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.normal_(parameter.data, 1.0, 0.2)
    return model


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Hugging Face's rows in Meta's order, put in their places one by one."""
    rows = torch.empty_like(weight)
    half = head_dim // 2
    for row in range(len(weight)):
        head, inside = divmod(row, head_dim)
        pair, second = (inside, 0) if inside < half else (inside - half, 1)
        rows[head * head_dim + 2 * pair + second] = weight[row]
    return rows


def meta_weights(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """The model's weights under Meta's names, in Meta's order of rows."""
    theirs, weights = model.state_dict(), dict[str, Tensor]()
    inner = [f"attention.w{part}" for part in "qkvo"]
    inner += [f"feed_forward.w{part}" for part in "123"]
    inner += ["attention_norm", "ffn_norm"]
    names = [f"layers.{index}.{name}" for index in range(LAYERS) for name in inner]
    for name in ("tok_embeddings", "norm", "output", *names):
        own = samples.hugging_face_name(f"{name}.weight")
        weight = theirs[own]
        if _ROTATED.search(own):
            weight = interleaved(weight, model.config.head_dim)
        weights[f"{name}.weight"] = weight
    return weights


def _config(model: LlamaForCausalLM, folder: Path) -> None:
    model.config.save_pretrained(folder)


def meta_pth(model: LlamaForCausalLM, folder: Path) -> Path:
    _config(model, folder)
    torch.save(meta_weights(model), folder / "consolidated.00.pth")
    return folder


def gpt_fast_pth(model: LlamaForCausalLM, folder: Path) -> Path:
    _config(model, folder)
    weights = meta_weights(model)
    for index in range(LAYERS):
        start = f"layers.{index}.attention"
        parts = [weights.pop(f"{start}.w{part}.weight") for part in "qkv"]
        weights[f"{start}.wqkv.weight"] = torch.cat(parts)
    torch.save(weights, folder / "model.pth")
    return folder


def consolidated_pth(model: LlamaForCausalLM, folder: Path) -> Path:
    _config(model, folder)
    # The key and value rows of one head may lie in two parts: it is the files' matter.
    for number, part in enumerate(samples.consolidated(meta_weights(model), 2, 1)):
        torch.save(part, folder / f"consolidated.{number:02}.pth")
    return folder


def safetensors(model: PreTrainedModel, folder: Path, *, size: str = "1GB") -> Path:
    model.save_pretrained(folder, max_shard_size=size)
    return folder


def gguf_file(
    model: PreTrainedModel, folder: Path, *, kind: gguf.GGMLQuantizationType
) -> Path:
    """A file as llama.cpp's converter writes it: matrices in `kind`, vectors in F32."""
    path, config = folder / "model.gguf", model.config
    # A Mistral is a llama there.
    name = {"mistral": "llama"}.get(config.model_type, config.model_type)
    (architecture,) = (k for k, own in gguf.MODEL_ARCH_NAMES.items() if own == name)
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = _head_dim(model)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if not config.model_type.startswith("qwen") and _ROTATED.search(name):
            weight = interleaved(weight, head_dim)
        data, own = weight.float().numpy(), _KINDS.F32
        if data.ndim == 2:
            own, data = kind, quantize(data, kind)
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(str(theirs), data, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _head_dim(model: PreTrainedModel) -> int:
    config = model.config
    own: int | None = getattr(config, "head_dim", None)
    return own or config.hidden_size // config.num_attention_heads


def quantized_by_gguf(
    model: LlamaForCausalLM, kind: gguf.GGMLQuantizationType
) -> LlamaForCausalLM:
    """The model with the values that such a file stores for its matrices."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            stored = quantize(parameter.detach().float().numpy(), kind)
            values = gguf.quants.dequantize(stored, kind)
            parameter.data = torch.from_numpy(values)
    return model


def theirs(model: Any) -> QueriesAndKeys:
    """Those that transformers gives to attention, in float32."""
    seen: QueriesAndKeys = []

    def recorded(module: Any, q: Tensor, k: Tensor, *rest: Any, **options: Any) -> Any:
        seen.append((q[0].clone(), k[0].clone()))
        return sdpa_attention_forward(module, q, k, *rest, **options)

    ALL_ATTENTION_FUNCTIONS.register("recorded", recorded)
    ALL_MASK_ATTENTION_FUNCTIONS.register("recorded", sdpa_mask)
    model = model.float().eval()
    model.set_attn_implementation("recorded")
    with torch.no_grad():
        model(TOKENS)
    return seen


def ours(model: Transformer) -> QueriesAndKeys:
    """Those that this project's model gives to attention."""
    seen: QueriesAndKeys = []
    attend = F.scaled_dot_product_attention

    def recorded(q: Tensor, k: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.append((q[0].clone(), k[0].clone()))
        return attend(q, k, *rest, **options)

    with patch.object(F, "scaled_dot_product_attention", recorded):
        model.logits(TOKENS)
    return seen


def wrong_rows(
    own: QueriesAndKeys, wanted: QueriesAndKeys, *, most: float = 1e-4
) -> list[str]:
    """The rows that differ at any token by more than a share of the largest value.

    Each is "<layer> <q or k> <head> <row>", the row in the order of halves.
    """
    assert len(own) == len(wanted) > 0
    wrong = []
    for layer, (one, other) in enumerate(zip(own, wanted, strict=True)):
        for part, mine, reference in zip("qk", one, other, strict=True):
            halves = torch.cat((mine[..., 0::2], mine[..., 1::2]), dim=-1)
            assert halves.shape == reference.shape
            errors = (halves - reference).abs().amax(dim=1) / reference.abs().max()
            # A comparison with NaN is false.
            for head, row in (~(errors <= most)).nonzero().tolist():
                wrong.append(f"{layer} {part} {head} {row}")
    return wrong

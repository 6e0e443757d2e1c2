"""transformers' own model of a reader's weights, quantized layer by layer.

Its class is the one that `config.json` names. Query and key rows are in the order of
RoPE on two halves of a head there, on interleaved pairs here. Knows no generation.
"""

import logging
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from llama_perf.checkpoints.config import to_hugging_face
from llama_perf.checkpoints.reader import WeightsReader
from llama_perf.devices.device import package_version
from llama_perf.errors import NotRunnable
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.memory_segments import ScratchPool
from llama_perf.llama.row_engine import Read
from llama_perf.llama.transformer import Origin, tensor_bytes
from llama_perf.quantize.apply import Quantizer
from llama_perf.quantize.libraries import quiet

LIBRARY = "transformers"
# Our names of a layer's parts, theirs, and where a quantizer finds each linear: the
# three of `wqkv` are one here.
_LINEARS = {
    "attention.wqkv.q": "self_attn.q_proj",
    "attention.wqkv.k": "self_attn.k_proj",
    "attention.wqkv.v": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}
_NORMS = {
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_PARTS = _LINEARS | _NORMS
_QKV = "attention.wqkv"
_ROTATED = (f"{_QKV}.q", f"{_QKV}.k", "attention.q_norm", "attention.k_norm")


def check_installed() -> None:
    """Raise NotRunnable without transformers."""
    if package_version(LIBRARY) is None:
        raise NotRunnable(f"{LIBRARY} is not installed (pip install {LIBRARY})")


@cache
def import_transformers() -> Any:
    """Import transformers, which takes seconds; raises NotRunnable without it."""
    check_installed()
    try:
        with quiet():
            library = import_module(LIBRARY)
            # It imports its parts when they are asked for.
            for name in ("AutoModelForCausalLM", "GenerationConfig", "StaticCache"):
                getattr(library, name)
    except Exception as error:  # a library may fail in any way
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise NotRunnable(f"{LIBRARY} cannot be imported: {reason}") from None
    # What it advises its users of is none of a row's.
    logging.getLogger(LIBRARY).setLevel(logging.ERROR)
    return library


class TransformersModel:
    """The weights of `module`, a causal language model of transformers."""

    def __init__(self, module: Any, config: ModelConfig, origin: Origin) -> None:
        self.module = module
        self.config = config
        self.origin: Origin | None = origin

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.module.model.embed_tokens.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations and of unquantized weights."""
        dtype: torch.dtype = self.module.model.embed_tokens.weight.dtype
        return dtype

    def weight_bytes(self) -> int:
        """Bytes of the parameters that a token reads: all but the embedding."""
        return sum(
            tensor_bytes(parameter)
            for name, parameter in self.module.named_parameters(remove_duplicate=False)
            if name != "model.embed_tokens.weight"
        )

    def layer_weights(self, index: int, read: Read) -> dict[str, Tensor]:
        """The weights of a layer as this project's block has them."""
        theirs = dict(self.module.model.layers[index].named_parameters())
        ours: dict[str, Tensor] = {}
        for stem, their_stem in _PARTS.items():
            for kind in ("weight", "bias"):
                if (tensor := theirs.get(f"{their_stem}.{kind}")) is None:
                    continue
                values = read(tensor)
                if stem in _ROTATED:
                    values = _in_pairs(values, self.config.head_dim)
                ours[f"{stem}.{kind}"] = values
        for kind in ("weight", "bias"):
            parts = [ours.pop(f"{_QKV}.{part}.{kind}", None) for part in "qkv"]
            if found := [part for part in parts if part is not None]:
                ours[f"{_QKV}.{kind}"] = torch.cat(found)
        return ours

    def final_weights(self, read: Read) -> dict[str, Tensor]:
        """`norm.weight` (dim,) and `output.weight` (V, dim)."""
        module = self.module
        weights = {"norm": module.model.norm.weight, "output": module.lm_head.weight}
        return {f"{name}.weight": read(weight) for name, weight in weights.items()}


def build_transformers_model(
    reader: WeightsReader,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantizer: Quantizer | None = None,
) -> TransformersModel:
    """Read, move and quantize one layer after the other, into transformers' model.

    The quantizer sees the linears under this project's names, the three of
    `attention.wqkv` as `attention.wqkv.q` and so on. Raises NotRunnable for a
    checkpoint that is quantized already.
    """
    if reader.origin.scheme is not None:
        raise NotRunnable(
            f"engine {LIBRARY} runs unquantized checkpoints, and quantizes them itself;"
            f" this one is {reader.origin.scheme}"
        )
    config = reader.config
    module = _empty_model(config, dtype, device)

    def assign(part: nn.Module, weights: dict[str, Tensor]) -> None:
        # A copy even of what stays as it is: the reader may keep it.
        moved = {
            name: weight.to(device=device, dtype=dtype, copy=True)
            for name, weight in weights.items()
        }
        part.load_state_dict(moved, assign=True)

    assign(module.model.embed_tokens, {"weight": reader.embedding()})
    scratch = ScratchPool(device if quantizer is not None else torch.device("cpu"))
    for index, layer in enumerate(module.model.layers):
        with scratch.allocate():
            assign(layer, dict(_their_weights(reader.layer(index), config)))
            if quantizer is not None:
                quantizer(_under_our_names(layer), f"layers.{index}")
        # Layers are alike.
        scratch.move_out(layer, room_for=0 if index else config.n_layers)
    with scratch.allocate():
        final = reader.final()
        assign(module.model.norm, {"weight": final["norm.weight"]})
        if "output.weight" in final:
            assign(module.lm_head, {"weight": final["output.weight"]})
        else:
            module.lm_head.weight = module.model.embed_tokens.weight
        if quantizer is not None:
            quantizer(module.lm_head, "output")
    scratch.move_out(module.model.norm)
    if module.lm_head.weight is not module.model.embed_tokens.weight:
        scratch.move_out(module.lm_head)
    module.requires_grad_(False).eval()
    return TransformersModel(module, config, reader.origin)


def _empty_model(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """The model without its weights, on the meta device, and with its rotary tables."""
    library = import_transformers()
    fields = to_hugging_face(config)
    # It would take the ids of Llama's for the ends of a text.
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    theirs = library.AutoConfig.for_model(**fields, **ends)
    # It imports the model, and torchao, when it is asked for one.
    with quiet(), torch.device("meta"):
        module = library.AutoModelForCausalLM.from_config(
            theirs, dtype=dtype, attn_implementation="sdpa"
        )
    rotary = type(module.model.rotary_emb)
    module.model.rotary_emb = rotary(config=theirs).to(device)
    return module


def _their_weights(
    weights: dict[str, Tensor], config: ModelConfig
) -> Iterator[tuple[str, Tensor]]:
    """A layer's weights under transformers' names, in its order of rows."""
    heads = config.n_heads, config.n_kv_heads, config.n_kv_heads
    for name, tensor in weights.items():
        stem, _, kind = name.rpartition(".")
        parts = {stem: tensor}
        if stem == _QKV:
            split = tensor.split([count * config.head_dim for count in heads])
            parts = {
                f"{_QKV}.{part}": own for part, own in zip("qkv", split, strict=True)
            }
        for part, own in parts.items():
            rotated = part in _ROTATED
            values = _in_halves(own, config.head_dim) if rotated else own
            yield f"{_PARTS[part]}.{kind}", values


def _in_halves(rows: Tensor, head_dim: int) -> Tensor:
    """Of each head, rows 2i and 2i + 1 become rows i and i + head_dim / 2."""
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)


def _in_pairs(rows: Tensor, head_dim: int) -> Tensor:
    """The opposite of `_in_halves`."""
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _under_our_names(layer: nn.Module) -> nn.Module:
    """The linears of a layer in a tree of modules that has this project's names."""
    root = nn.ModuleDict()
    for ours, theirs in _LINEARS.items():
        *path, last = ours.split(".")
        parent = root
        for name in path:
            if name not in parent:
                parent[name] = nn.ModuleDict()
            child = parent[name]
            assert isinstance(child, nn.ModuleDict), f"{ours} is inside a linear"
            parent = child
        parent[last] = layer.get_submodule(theirs)
    return root

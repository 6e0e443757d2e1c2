"""The Llama transformer, in the names of Meta's reference code.

Knows token ids and tensors; nothing of files, tokenizers, sampling or quantization
(a quantized model is this one with other tensors as its linear weights).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_perf.errors import SpecError
from llama_perf.kernels.attention import without_cudnn
from llama_perf.llama.attention import CAUSAL, Attention, VisiblePositions
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.kv_cache import KVCache
from llama_perf.llama.linear import Linear
from llama_perf.llama.memory_segments import inner_tensors
from llama_perf.llama.prompt_checks import check_tokens
from llama_perf.llama.rotary import Rotary, inverse_frequencies, rotary

# Shape legend: B batch, T positions of this call, V vocabulary.

RunBlock = Callable[..., Tensor]
"""Called with a block and the arguments of `TransformerBlock.forward`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a model's weights come from, and how they were quantized.

    `weights` is the source before quantization, as its reader names it: "synthetic",
    "gguf:<file>", ... Scheme and kernels are None where unquantized.
    """

    weights: str
    scheme: str | None = None
    kernels: str | None = None

    @property
    def summary(self) -> str:
        """One phrase, such as "int8wo, native, from gguf:model.gguf"."""
        parts = [part for part in (self.scheme, self.kernels) if part is not None]
        return ", ".join([*parts, f"from {self.weights}"])


class RMSNorm(nn.Module):
    """x / rms(x) * weight, normalised in float32. Zhang and Sennrich (2019)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


class FeedForward(nn.Module):
    """The gated feed-forward layer (SwiGLU). Shazeer (2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = Linear(config.dim, config.intermediate_size)
        self.w3 = Linear(config.dim, config.intermediate_size)
        self.w2 = Linear(config.intermediate_size, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each behind a norm and a residual connection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self,
        x: Tensor,
        cos_sin: Rotary,
        positions: Tensor,
        cache: KVCache | None,
        visible: VisiblePositions,
    ) -> Tensor:
        """(B, T, dim) to (B, T, dim); arguments as for `Attention.forward`."""
        h = x + self.attention(
            self.attention_norm(x), cos_sin, positions, cache, visible
        )
        out: Tensor = h + self.feed_forward(self.ffn_norm(h))
        return out


class Transformer(nn.Module):
    """A Llama model."""

    inverse_frequencies: Tensor
    origin: Origin | None = None
    """Set by whoever loads or quantizes the weights; nothing here reads it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        blocks = (TransformerBlock(config) for _ in range(config.n_layers))
        self.layers = nn.ModuleList(blocks)
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = Linear(config.dim, config.vocab_size)
        self.register_buffer("inverse_frequencies", None, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tok_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations and of unquantized weights."""
        return self.tok_embeddings.weight.dtype

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        *,
        caches: Sequence[KVCache] | None = None,
        visible: VisiblePositions = CAUSAL,
        run_block: RunBlock = TransformerBlock.forward,
        started: tuple[Tensor, Rotary] | None = None,
    ) -> Tensor:
        """Run all blocks over int64 `tokens` (B, T); (B, T, dim).

        `positions` are int64 (T,), or (B, T) where each sequence has its own. A
        compiled `run_block` serves every layer. `started` are the embedded tokens,
        (B, T, dim), and their rotation, where a kernel has made them.
        """
        x, cos_sin = started or (
            self.tok_embeddings(tokens),
            rotary(self.frequencies(), positions),
        )
        # Outside the blocks, where it would break the compiled graph.
        with without_cudnn():
            for index, block in enumerate(self.layers):
                cache = None if caches is None else caches[index]
                x = run_block(block, x, cos_sin, positions, cache, visible)
        return x

    def frequencies(self) -> Tensor:
        """The angle a position adds to each pair of a head, made once."""
        if self.inverse_frequencies is None:
            made = inverse_frequencies(self.config, device=self.device)
            self.inverse_frequencies = made
        return self.inverse_frequencies

    def head(self, x: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., dim)."""
        out: Tensor = self.output(self.norm(x))
        return out

    def logits(self, tokens: Tensor) -> Tensor:
        """Float32 logits (B, T, V) of a text, int64 (B, T), at once, without a cache.

        Raises PromptError for another shape or dtype, or ids outside the vocabulary.
        """
        check_tokens(tokens, self.config.vocab_size, None)
        tokens = tokens.to(self.device)
        positions = torch.arange(tokens.shape[1], device=self.device)
        with torch.no_grad():
            return self.head(self.hidden(tokens, positions)).float()

    forward = logits

    def weight_bytes(self) -> int:
        """Bytes of the parameters that a token reads: all but the embedding.

        An output layer tied to the embedding counts, as in the reference.
        """
        return sum(
            tensor_bytes(parameter)
            for name, parameter in self.named_parameters(remove_duplicate=False)
            if name != "tok_embeddings.weight"
        )


def check_transformer(model: object) -> None:
    """Raise SpecError unless `model` is a Transformer."""
    if not isinstance(model, Transformer):
        allowed = "allowed: a Transformer, as load_model gives it"
        raise SpecError("model", type(model).__name__, allowed)


def is_unquantized(tensor: Tensor) -> bool:
    """Whether `tensor` holds its floats as they are, not packed by a subclass."""
    return type(tensor) in (Tensor, nn.Parameter)


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes a tensor stores; those of its inner tensors for a tensor subclass."""
    return sum(inner.nbytes for inner in inner_tensors(tensor))

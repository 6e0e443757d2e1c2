"""The transformer of Llama's family, in the names of Meta's reference code.

Knows token ids and tensors; nothing of files, tokenizers, sampling or quantization
(a quantized model is this one with other tensors as its linear weights).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llama_perf.devices.ranks import gather_over_ranks
from llama_perf.errors import PromptError, SpecError
from llama_perf.kernels.attention import without_cudnn
from llama_perf.llama import attention, layers
from llama_perf.llama.attention import Attention, KVCache, Place
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.layers import Rotary
from llama_perf.llama.memory_segments import inner_tensors

# Shape legend: B batch, T positions of this call, V vocabulary.

RunBlock = Callable[..., Tensor]
"""Called with a block and the arguments of `TransformerBlock.forward`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a model's weights come from, and how they were quantized.

    `weights` is the source before quantization, as its reader names it: "synthetic",
    "gguf:<file>", ... Scheme and kernels are None where unquantized; `modules` are the
    globs of the linears that were quantized, None where all were.
    """

    weights: str
    scheme: str | None = None
    kernels: str | None = None
    modules: str | None = None

    @property
    def summary(self) -> str:
        """One phrase, such as "int8wo, native, from gguf:model.gguf"."""
        only = None if self.modules is None else f"only {self.modules}"
        parts = [part for part in (self.scheme, self.kernels, only) if part is not None]
        return ", ".join([*parts, f"from {self.weights}"])


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each behind a norm and a residual connection."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.feed_forward = layers.FeedForward(config)
        self.attention_norm = layers.RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = layers.RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, cache: KVCache | None, place: Place) -> Tensor:
        """(B, T, dim) to (B, T, dim); arguments as for `Attention.forward`."""
        h = x + self.attention(self.attention_norm(x), cache, place)
        out: Tensor = h + self.feed_forward(self.ffn_norm(h))
        return out


class Transformer(nn.Module):
    """A model of Llama's family."""

    inverse_frequencies: Tensor
    origin: Origin | None = None
    """Set by whoever loads or quantizes the weights; nothing here reads it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        blocks = (TransformerBlock(config, index) for index in range(config.n_layers))
        self.layers = nn.ModuleList(blocks)
        self.norm = layers.RMSNorm(config.dim, config.norm_eps)
        self.output = layers.Linear(
            config.dim, config.output_size, cut=config.cut_of("output")
        )
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
        visible: attention.VisiblePositions = attention.CAUSAL,
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
            layers.rotary(self.frequencies(), positions),
        )
        # Outside the blocks, where it would break the compiled graph.
        with without_cudnn():
            for index, block in enumerate(self.layers):
                cache = None if caches is None else caches[index]
                x = run_block(block, x, cache, Place(cos_sin, positions, visible))
        return x

    def frequencies(self) -> Tensor:
        """The angle a position adds to each pair of a head, made once."""
        if self.inverse_frequencies is None:
            made = layers.inverse_frequencies(self.config, device=self.device)
            self.inverse_frequencies = made
        return self.inverse_frequencies

    def head(self, x: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., dim)."""
        return self.gathered(self.output(self.norm(x)))

    def gathered(self, logits: Tensor) -> Tensor:
        """Logits (..., V) of all ranks from those of this rank's output layer."""
        ranks = self.config.ranks
        return logits if ranks == 1 else gather_over_ranks(logits, ranks)

    def logits(self, tokens: Tensor) -> Tensor:
        """Float32 logits (B, T, V) of a text, int64 (B, T), at once, without a cache.

        Raises PromptError for another shape or dtype, or ids outside the vocabulary.
        """
        check_tokens(tokens, self.config.vocab_size)
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


def check_tokens(tokens: Tensor, vocab_size: int, batch_size: int = 0) -> None:
    """Raise PromptError unless int64 (batch, length) of known ids.

    `batch_size` is how many sequences the caches hold; 0 where there are none.
    """
    if tokens.dtype != torch.int64 or tokens.ndim != 2 or tokens.numel() == 0:
        kind = f"{tokens.dtype} {tuple(tokens.shape)} is not allowed"
        allowed = "allowed: int64 (batch, length), neither of them 0"
        raise PromptError(f"tokens: {kind}; {allowed}")
    for token in map(int, tokens.aminmax()):
        if not 0 <= token < vocab_size:
            allowed = f"the vocabulary has ids 0 to {vocab_size - 1}"
            raise PromptError(f"tokens: id {token} is not allowed; {allowed}")
    if batch_size not in (0, len(tokens)):
        batch = f"a batch of {len(tokens)} is not allowed"
        raise PromptError(f"prompt: {batch}; the caches hold {batch_size}")


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

"""Generation: prefill, decode, sampling, compilation. Token ids only.

Knows nothing of text, files, quantization or clocks: whoever measures hands in
`after_prefill`, which is called when the first token has been chosen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from llama_perf.errors import PromptError, SpecError
from llama_perf.model.attention import CausalMask
from llama_perf.model.kv_cache import KVCache
from llama_perf.model.sampling import sample
from llama_perf.model.transformer import Transformer, TransformerBlock, check_tokens
from llama_perf.spec import check_sampling


class Engine:
    """A model with its caches, ready to generate.

    `compile` compiles one block and the head for decoding (regional compilation:
    every layer runs the same compiled block), `compile_prefill` the same for the
    prompt with a dynamic length. `slowdown` repeats that share of the decoding steps
    and throws the repeats away: a switch for testing the gate, see docs/gate.md.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        batch_size: int = 1,
        cache_size: int,
        linear_causal_mask: bool = False,
        compile: bool = False,
        compile_prefill: bool = False,
        slowdown: float = 0.0,
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.cache_size = cache_size
        self._slowdown = slowdown
        self._caches = [
            KVCache(
                model.config,
                batch_size=batch_size,
                cache_size=cache_size,
                dtype=model.dtype,
                device=model.device,
            )
            for _ in range(model.config.n_layers)
        ]
        self._mask = CausalMask(
            cache_size, linear=linear_causal_mask, device=model.device
        )
        block, head = TransformerBlock.forward, Transformer.head
        self._decode_block, self._decode_head = block, head
        self._prefill_block, self._prefill_head = block, head
        if compile:
            self._decode_block = torch.compile(block, fullgraph=True, dynamic=False)
            self._decode_head = torch.compile(head, fullgraph=True, dynamic=False)
        if compile_prefill:
            self._prefill_block = torch.compile(block, fullgraph=True, dynamic=True)

    def prefill(self, tokens: Tensor) -> Tensor:
        """Logits (B, vocabulary) after `tokens`, int64 (B, T), at positions 0..T-1."""
        positions = torch.arange(tokens.shape[1], device=self.model.device)
        x = self.model.hidden(
            tokens, positions, caches=self._caches, run_block=self._prefill_block
        )
        return self._prefill_head(self.model, x[:, -1])

    def decode(self, token: Tensor, position: Tensor) -> Tensor:
        """Logits (B, vocabulary) after `token`, int64 (B, 1), at `position` (1,)."""
        x = self.model.hidden(
            token,
            position,
            caches=self._caches,
            mask=self._mask.rows(position),
            run_block=self._decode_block,
        )
        return self._decode_head(self.model, x[:, -1])

    @torch.no_grad()
    def stream(
        self,
        prompt: Tensor,
        *,
        max_new_tokens: int,
        temperature: float = 0.8,
        top_k: int | None = 200,
        generator: torch.Generator | None = None,
        after_prefill: Callable[[], None] | None = None,
    ) -> Iterator[Tensor]:
        """Yield each new token, int64 (B, 1), on the model's device.

        Never waits for the device. `prompt` is int64 (B, T) on the model's device;
        it must have passed `check_prompt`.
        """
        length = prompt.shape[1]

        def choose(logits: Tensor) -> Tensor:
            return sample(
                logits, temperature=temperature, top_k=top_k, generator=generator
            )

        token = choose(self.prefill(prompt))
        if after_prefill is not None:
            after_prefill()
        yield token
        # Filled there: a copy from the host would wait for the prefill.
        position = torch.full((1,), length, device=self.model.device)
        owed = 0.0
        for _ in range(max_new_tokens - 1):
            logits = self.decode(token, position)
            # Repeating a step rewrites the same position with the same values.
            owed += self._slowdown
            while owed >= 1.0:
                self.decode(token, position)
                owed -= 1.0
            token = choose(logits)
            position += 1
            yield token

    def generate(
        self,
        prompt: Tensor,
        *,
        max_new_tokens: int,
        temperature: float = 0.8,
        top_k: int | None = 200,
        generator: torch.Generator | None = None,
        after_prefill: Callable[[], None] | None = None,
    ) -> Tensor:
        """Generate all `max_new_tokens`, whatever they are; (B, T + new) int64."""
        new = self.stream(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            generator=generator,
            after_prefill=after_prefill,
        )
        return torch.cat([prompt, *new], dim=1)

    def check_prompt(self, prompt: Tensor, *, max_new_tokens: int) -> None:
        """Raise PromptError unless the prompt and the new tokens fit."""
        check_tokens(prompt, self.model.config.vocab_size)
        batch, length = prompt.shape
        if batch != self.batch_size:
            raise PromptError(
                f"prompt: a batch of {batch} is not allowed; the caches hold"
                f" {self.batch_size}"
            )
        if max_new_tokens < 1:
            raise PromptError(
                f"max_new_tokens: {max_new_tokens} is not allowed; allowed: 1 or more"
            )
        if length + max_new_tokens > self.cache_size:
            raise PromptError(
                f"prompt: {length} tokens + {max_new_tokens} new ones do not fit the"
                f" cache of {self.cache_size} positions"
            )


def generate(
    model: Transformer,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = 200,
    seed: int | None = None,
    cache_size: int | None = None,
    compile: bool = False,
) -> Tensor:
    """Generate from `prompt`, int64 (batch, length); (batch, length + new) int64.

    `temperature` 0 is greedy; `top_k` None draws from the whole vocabulary; `seed`
    makes the draws repeatable on one device type; `cache_size` counts positions and is
    as large as needed where not given. Raises PromptError for a prompt that does not
    fit, SpecError for another argument that is not allowed.
    """
    if prompt.ndim != 2:
        raise PromptError(
            f"prompt: shape {tuple(prompt.shape)} is not allowed; allowed: (batch,"
            " length)"
        )
    batch, length = prompt.shape
    check_sampling(temperature=temperature, top_k=top_k)
    if cache_size is None:
        cache_size = max(length + max_new_tokens, 1)
    elif cache_size < 1:
        raise SpecError("cache_size", cache_size, "allowed: 1 or more positions")
    engine = Engine(
        model, batch_size=max(batch, 1), cache_size=cache_size, compile=compile
    )
    engine.check_prompt(prompt, max_new_tokens=max_new_tokens)
    generator = None
    if seed is not None:
        generator = torch.Generator(device=model.device).manual_seed(seed)
    return engine.generate(
        prompt.to(model.device),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        generator=generator,
    )


@contextmanager
def compiler_settings() -> Iterator[None]:
    """The inductor flags torchao recommends, for every row alike, then put back.

    They change the unquantized kernels too, so a row that alone had them would not
    compare with the others. The compiler's caches of earlier rows are dropped: rows
    share the block's code, and inherited entries would count as recompilations.
    """
    from torch._inductor import config

    _forget_compiled()
    flags = {
        "coordinate_descent_tuning": True,
        "coordinate_descent_check_all_directions": True,
        "force_fuse_int_mm_with_mul": True,
        "fx_graph_cache": True,
    }
    with warnings.catch_warnings(), config.patch(flags):
        # torchao's tensors lack the hash that torch 2.13 caches compiled graphs by.
        warnings.filterwarnings("ignore", message=".*_stable_hash_for_caching.*")
        # A float32 row does without TF32 on purpose.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        try:
            yield
        finally:
            _forget_compiled()


def _forget_compiled() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()

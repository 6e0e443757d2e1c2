"""Generation: prefill, decode, sampling, compilation. Token ids only.

Knows nothing of text, files, quantization or clocks. Callers that measure pass
`after_prefill`, which is called when the first token has been chosen.
`llama_perf.llama.generate` does all of it in one call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llama_perf.errors import NotRunnable, PromptError
from llama_perf.llama.attention import (
    CausalMask,
    VisiblePositions,
    visible_to_chunk,
    visible_to_token,
)
from llama_perf.llama.decode_step import DecodeStep
from llama_perf.llama.kv_cache import KVCache, caches
from llama_perf.llama.model_functions import RunBlock, model_functions
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.prompt_checks import check_batch, check_lengths, check_room
from llama_perf.llama.sampling import Sampling
from llama_perf.llama.step_cache import StepCache
from llama_perf.llama.transformer import (
    Transformer,
    check_tokens,
    state_after,
    tensor_bytes,
)
from llama_perf.rows.spec import FUSED_TOKENS

if TYPE_CHECKING:
    # It imports Triton.
    from llama_perf.llama.fused import FusedStep

PREFILL_CHUNK = 512
"""Tokens of a prompt at a time on the `decode` path where a row does not say.

With this many the products take the time, not reading the weights, and the activations
between the layers of an 8-billion-parameter model stay below 0.1 GB.
"""


class Engine:
    """A model with its caches, ready to generate.

    The first `filled` positions are the same for every prompt, which starts behind
    them; `fill` sets them.
    """

    def __init__(
        self, model: Transformer, options: EngineOptions = EngineOptions()
    ) -> None:
        self.model = model
        self.options = options
        self.batch_size = options.batch_size
        self.cache_size = options.cache_size or model.config.context
        self.filled = 0
        self._caches = caches(
            model.config,
            batch_size=self.batch_size,
            cache_size=self.cache_size,
            dtype=model.dtype,
            device=model.device,
            kind=options.kv_cache,
        )
        self._mask: CausalMask | None = None
        chunk = PREFILL_CHUNK
        if options.attention == "sdpa":
            chunk = self.cache_size
            self._mask = CausalMask(
                self.cache_size, linear=options.linear_causal_mask, device=model.device
            )
        self._chunk = options.prefill_chunk or chunk
        self._fused = self._fused_step() if options.fused else None
        self._functions = model_functions(options, self._fused)
        # A weak reference: the steps belong to the engine, and a dropped engine
        # frees its caches at once.
        engine = weakref.proxy(self)
        self._steps = StepCache(
            lambda prompt, lengths: engine.prefill(prompt, lengths),
            lambda token, position: engine.decode(token, position),
            options=options,
            cache_size=self.cache_size,
            fused=self._fused,
            device=model.device,
        )

    def _fused_step(self) -> FusedStep:
        """The kernels that run a few tokens."""
        from llama_perf.llama.fused import FusedStep

        if self._mask is not None:
            raise NotRunnable("fused: it needs attention 'decode', not 'sdpa'")
        return FusedStep(self.model, batch_size=self.batch_size)

    @torch.no_grad()
    def fill(self, tokens: Tensor) -> None:
        """Fill the first positions with `tokens`, int64 (B, T), for every prompt.

        Raises PromptError unless they fit and leave room for a prompt.
        """
        self.filled = 0
        check_tokens(tokens, self.model.config.vocab_size)
        check_batch(tokens, self.batch_size)
        length = tokens.shape[1]
        if length >= self.cache_size:
            raise PromptError(
                f"fill: {length} positions leave no room for a prompt in the cache of"
                f" {self.cache_size}"
            )
        self._run(tokens.to(self.model.device), None)
        self.filled = length

    def prefill(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (B, vocabulary) after `tokens`, int64 (B, T), behind `filled`.

        With `lengths`, int64 (B,), they follow that many tokens of each sequence.
        """
        return self._functions.prefill_head(self.model, self._run(tokens, lengths))

    def _run(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """The last hidden state of each sequence, (B, dim), chunk by chunk."""
        last: Tensor | None = None
        for first in range(0, tokens.shape[1], self._chunk):
            chunk = tokens[:, first : first + self._chunk]
            start = self.filled + first
            end = start + chunk.shape[1]
            positions = torch.arange(start, end, device=self.model.device)
            visible = visible_to_chunk(self._mask, positions, start, end)
            x = self._hidden(chunk, positions, visible, self._functions.prefill_block)
            last = (
                x[:, -1] if lengths is None else state_after(x, lengths - first, last)
            )
        assert last is not None, "a prompt without tokens"
        return last

    def decode(self, token: Tensor, position: Tensor) -> Tensor:
        """Logits (B, vocabulary) after `token`, int64 (B, 1), at `position`.

        int64 (1,), or (B, 1) where each sequence has its own.
        """
        x = self._hidden(token, position, None, self._functions.decode_block)
        return self._functions.decode_head(self.model, x[:, -1])

    def _hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        visible: VisiblePositions | None,
        run_block: RunBlock,
    ) -> Tensor:
        """Hidden states (B, T, dim) of `tokens`, (B, T), behind all blocks.

        Where `visible` is None, a token sees the filled positions and itself.
        """
        if self._fused is not None and tokens.numel() <= FUSED_TOKENS:
            x, cos_sin, filled = self._fused.start(self.model, tokens, positions)
            return self.model.through_blocks(
                x,
                cos_sin,
                positions,
                caches=self._caches,
                visible=visible or VisiblePositions(filled=filled),
                run_block=run_block,
            )
        return self.model.hidden(
            tokens,
            positions,
            caches=self._caches,
            visible=visible or visible_to_token(self._mask, positions),
            run_block=run_block,
        )

    def _generate(
        self,
        prompt: Tensor,
        *,
        max_new_tokens: int,
        lengths: Tensor | None,
        sampling: Sampling,
        after_prefill: Callable[[], None] | None = None,
    ) -> Iterator[DecodeStep]:
        """Yield the step each time it has chosen a token."""
        step = self._steps.begin(
            prompt,
            lengths,
            start=self.filled,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
        )
        if after_prefill is not None:
            after_prefill()
        yield step
        repeats_due = 0.0
        for _ in range(max_new_tokens - 1):
            # Repeating a step rewrites the same position with the same values.
            repeats_due += self.options.slowdown
            while repeats_due >= 1.0:
                step.repeat()
                repeats_due -= 1.0
            step.run()
            yield step

    @torch.no_grad()
    def stream(
        self,
        prompt: Tensor,
        *,
        max_new_tokens: int,
        lengths: Tensor | None = None,
        sampling: Sampling = Sampling(),
    ) -> Iterator[Tensor]:
        """Yield each new token, int64 (B, 1), on the model's device.

        Waits for the device only on a CPU. `prompt` is int64 (B, T) on the model's
        device and must have passed `check_prompt`. With `lengths`, int64 (B,) on that
        device, sequence i is its first lengths[i] tokens; the rest is not read.
        """
        for step in self._generate(
            prompt, max_new_tokens=max_new_tokens, lengths=lengths, sampling=sampling
        ):
            yield step.state.token.clone()

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        *,
        max_new_tokens: int,
        lengths: Tensor | None = None,
        sampling: Sampling = Sampling(),
        after_prefill: Callable[[], None] | None = None,
    ) -> Tensor:
        """Generate all `max_new_tokens`, whatever they are; (B, T + new) int64.

        Arguments are those of `stream`. The new tokens start at column T, also where
        a sequence of the prompt is shorter.
        """
        for step in self._generate(  # noqa: B007 - the last one is used
            prompt,
            max_new_tokens=max_new_tokens,
            lengths=lengths,
            sampling=sampling,
            after_prefill=after_prefill,
        ):
            pass
        return torch.cat([prompt, step.state.history[:, :max_new_tokens]], dim=1)

    @torch.no_grad()
    def observe(
        self,
        prompt: Tensor,
        *,
        max_new_tokens: int,
        observed: int,
        lengths: Tensor | None = None,
        sampling: Sampling = Sampling(),
    ) -> tuple[Tensor, Tensor]:
        """As `generate`; the first `observed` new tokens and the logits of each.

        Tokens are int64 (B, observed), logits (B, observed, V).
        """
        logits: list[Tensor] = []
        for step in self._generate(
            prompt, max_new_tokens=max_new_tokens, lengths=lengths, sampling=sampling
        ):
            if len(logits) < observed:
                assert step.logits is not None, "a token was chosen from some"
                logits.append(step.logits.clone())
        return step.state.history[:, :observed].clone(), torch.stack(logits, dim=1)

    def check_prompt(
        self, prompt: Tensor, *, max_new_tokens: int, lengths: Tensor | None = None
    ) -> None:
        """Raise PromptError unless the prompt and the new tokens fit."""
        check_tokens(prompt, self.model.config.vocab_size)
        check_batch(prompt, self.batch_size)
        if lengths is not None:
            if self._mask is not None:
                raise PromptError("lengths: not allowed with attention 'sdpa'")
            check_lengths(lengths, self.batch_size, prompt.shape[1])
        check_room(
            prompt.shape[1],
            max_new_tokens,
            filled=self.filled,
            cache_size=self.cache_size,
        )

    @property
    def caches(self) -> Sequence[KVCache]:
        """The cache of each layer."""
        return self._caches

    def memory_bytes(self) -> int:
        """Bytes of the weights, the embedding, all of the caches and the mask."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        for cache in self._caches:
            tensors += cache.buffers()
        mask = 0 if self._mask is None else self._mask.memory_bytes()
        return sum(map(tensor_bytes, tensors)) + mask

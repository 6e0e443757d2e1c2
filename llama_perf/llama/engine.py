"""Generation: prefill, decode, sampling, compilation. Token ids only.

Knows nothing of text, files, quantization or clocks: whoever measures hands in
`after_prefill`, which is called when the first token has been chosen. `generation.py`
is the same in one call.
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
from llama_perf.llama.decode_step import Step
from llama_perf.llama.kv_cache import KVCache, caches
from llama_perf.llama.prompt_checks import check_batch, check_lengths, check_room
from llama_perf.llama.runs import RunBlock, chosen_runs
from llama_perf.llama.steps import Steps
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

Enough that products and not the weights' bytes take the time, few enough that what
lies between the layers of an 8-billion-parameter model stays below 0.1 GB.
"""


class Engine:
    """A model with its caches, ready to generate.

    `compile` compiles one block and the head for decoding (regional compilation:
    every layer runs the same compiled block), `compile_prefill` the same for the
    prompt with a dynamic length. `capture` replays each step of decoding as one CUDA
    graph. With `fused` a step of decoding, and a prompt as short, runs on `fused_step`
    instead of the blocks' modules, compiled or not. `kv_cache` is the kind of a
    quantized cache, int8 or fp8. `attention` is a path of `model/attention.py`;
    `prefill_chunk` the tokens of a prompt at a time, where None `PREFILL_CHUNK` on the
    `decode` path and all on the `sdpa` path. `slowdown` repeats that share of the
    decoding steps and throws the repeats away: a switch for testing the gate, see
    docs/gate.md.

    `filled` positions are held from `fill` on; every prompt stands behind them.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        batch_size: int = 1,
        cache_size: int,
        kv_cache: str | None = None,
        attention: str = "decode",
        linear_causal_mask: bool = False,
        prefill_chunk: int | None = None,
        compile: bool = False,
        compile_prefill: bool = False,
        capture: bool = False,
        fused: bool = False,
        slowdown: float = 0.0,
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.cache_size = cache_size
        self.filled = 0
        self._slowdown = slowdown
        self._caches = caches(
            model.config,
            batch_size=batch_size,
            cache_size=cache_size,
            dtype=model.dtype,
            device=model.device,
            kind=kv_cache,
        )
        self._mask: CausalMask | None = None
        if attention == "sdpa":
            self._mask = CausalMask(
                cache_size, linear=linear_causal_mask, device=model.device
            )
        whole = cache_size if attention == "sdpa" else PREFILL_CHUNK
        self._chunk = whole if prefill_chunk is None else prefill_chunk
        self._fused = self._fused_step() if fused else None
        self._runs = chosen_runs(
            self._fused, compile=compile, compile_prefill=compile_prefill
        )
        # Weakly: an engine that is dropped gives its caches back at once, though its
        # steps are its own.
        engine = weakref.proxy(self)
        self._steps = Steps(
            lambda prompt, lengths: engine.prefill(prompt, lengths),
            lambda token, position: engine.decode(token, position),
            batch=batch_size,
            cache_size=cache_size,
            capture=capture,
            repeats=slowdown > 0,
            fused=self._fused,
            device=model.device,
        )

    def _fused_step(self) -> FusedStep:
        """What replaces all that runs a few tokens."""
        from llama_perf.llama.fused import FusedStep

        if self._mask is not None:
            raise NotRunnable("fused: it needs attention 'decode', not 'sdpa'")
        return FusedStep(self.model, batch_size=self.batch_size)

    @torch.no_grad()
    def fill(self, tokens: Tensor) -> None:
        """Fill the first positions with `tokens`, int64 (B, T), for all prompts.

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
        """Logits (B, vocabulary) after `tokens`, int64 (B, T), behind what is filled.

        With `lengths`, int64 (B,), after as many tokens of each sequence.
        """
        return self._runs.prefill_head(self.model, self._run(tokens, lengths))

    def _run(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """The last hidden state of each sequence, (B, dim), chunk by chunk."""
        last: Tensor | None = None
        for first in range(0, tokens.shape[1], self._chunk):
            chunk = tokens[:, first : first + self._chunk]
            start = self.filled + first
            end = start + chunk.shape[1]
            positions = torch.arange(start, end, device=self.model.device)
            visible = visible_to_chunk(self._mask, positions, start, end)
            x = self._hidden(chunk, positions, visible, self._runs.prefill_block)
            last = (
                x[:, -1] if lengths is None else state_after(x, lengths - first, last)
            )
        assert last is not None, "a prompt without tokens"
        return last

    def decode(self, token: Tensor, position: Tensor) -> Tensor:
        """Logits (B, vocabulary) after `token`, int64 (B, 1), at `position`.

        int64 (1,), or (B, 1) where each sequence has its own.
        """
        x = self._hidden(token, position, None, self._runs.decode_block)
        return self._runs.decode_head(self.model, x[:, -1])

    def _hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        visible: VisiblePositions | None,
        run_block: RunBlock,
    ) -> Tensor:
        """Hidden states (B, T, dim) of `tokens`, (B, T), behind all blocks.

        Where `visible` is None a token sees what is filled, and itself.
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

    def _go_on(self, step: Step, count: int) -> Iterator[None]:
        """So many steps, one at a time, with the repeats that a slowdown owes."""
        owed = 0.0
        for _ in range(count):
            # Repeating a step rewrites the same position with the same values.
            owed += self._slowdown
            while owed >= 1.0:
                step.repeat()
                owed -= 1.0
            step.run()
            yield

    @torch.no_grad()
    def stream(
        self,
        prompt: Tensor,
        *,
        max_new_tokens: int,
        lengths: Tensor | None = None,
        temperature: float = 0.8,
        top_k: int | None = 200,
        generator: torch.Generator | None = None,
        after_prefill: Callable[[], None] | None = None,
    ) -> Iterator[Tensor]:
        """Yield each new token, int64 (B, 1), on the model's device.

        Waits for the device on a CPU alone. `prompt` is int64 (B, T) on the model's
        device; it must have passed `check_prompt`. With `lengths`, int64 (B,) there
        too, sequence i is its first lengths[i] tokens; what stands behind is not read.
        """
        step = self._steps.begin(
            prompt,
            lengths,
            behind=self.filled,
            most=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            generator=generator,
            after_prefill=after_prefill,
        )
        yield step.fed.token.clone()
        for _ in self._go_on(step, max_new_tokens - 1):
            yield step.fed.token.clone()

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        *,
        max_new_tokens: int,
        lengths: Tensor | None = None,
        temperature: float = 0.8,
        top_k: int | None = 200,
        generator: torch.Generator | None = None,
        after_prefill: Callable[[], None] | None = None,
    ) -> Tensor:
        """Generate all `max_new_tokens`, whatever they are; (B, T + new) int64.

        The new ones stand in the columns from T on, also of a prompt that is shorter.
        """
        step = self._steps.begin(
            prompt,
            lengths,
            behind=self.filled,
            most=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            generator=generator,
            after_prefill=after_prefill,
        )
        for _ in self._go_on(step, max_new_tokens - 1):
            pass
        return torch.cat([prompt, step.fed.history[:, :max_new_tokens]], dim=1)

    @torch.no_grad()
    def observe(
        self,
        prompt: Tensor,
        *,
        max_new_tokens: int,
        lengths: Tensor | None = None,
        temperature: float = 0.8,
        top_k: int | None = 200,
        generator: torch.Generator | None = None,
        observed: int,
    ) -> tuple[Tensor, Tensor]:
        """As `generate`; the first `observed` new tokens and the logits of each.

        (B, N) and (B, N, V).
        """
        step = self._steps.begin(
            prompt,
            lengths,
            behind=self.filled,
            most=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            generator=generator,
        )
        assert step.logits is not None, "the first token was chosen from some"
        logits = [step.logits.clone()]
        for _ in self._go_on(step, max_new_tokens - 1):
            if len(logits) < observed:
                logits.append(step.logits.clone())
        return step.fed.history[:, :observed].clone(), torch.stack(logits, dim=1)

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

    def held_bytes(self) -> int:
        """Bytes of the weights, the embedding, all of the caches and the mask."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        for cache in self._caches:
            tensors += cache.buffers()
        mask = 0 if self._mask is None else self._mask.held_bytes()
        return sum(map(tensor_bytes, tensors)) + mask

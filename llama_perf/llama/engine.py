"""Generation: prefill, decode, sampling, compilation. Token ids only.

Knows nothing of text, files, quantization or clocks. `generate` does all of it in one
call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor

from llama_perf.errors import NotRunnable, PromptError
from llama_perf.llama import attention
from llama_perf.llama.attention import Place, VisiblePositions
from llama_perf.llama.decode_step import (
    CapturedDecodeStep,
    DecodeStep,
    InjectedSteps,
    new_step,
)
from llama_perf.llama.draws import Draws
from llama_perf.llama.engine_weights import EngineWeights
from llama_perf.llama.fused_cpu import FusedCpuStep
from llama_perf.llama.fused_own import FusedOwnStep
from llama_perf.llama.fused_step import fused_step
from llama_perf.llama.options import GREEDY, EngineOptions, Request, Sampling
from llama_perf.llama.prompts import check_fits
from llama_perf.llama.transformer import Transformer, TransformerBlock, check_tokens
from llama_perf.rows.spec import FUSED_TOKENS

if TYPE_CHECKING:
    # It imports Triton.
    from llama_perf.llama.fused import FusedStep

PREFILL_CHUNK = 512
"""Tokens of a prompt at a time on the `decode` path where a row does not say.

With this many the products take the time, not reading the weights, and the activations
between the layers of an 8-billion-parameter model stay below 0.1 GB.
"""


def generate(
    model: Transformer,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    lengths: Tensor | None = None,
    sampling: Sampling = Sampling(),
    options: EngineOptions = EngineOptions(),
) -> Tensor:
    """Generate from `prompt`, int64 (batch, length); (batch, length + new) int64.

    With `lengths`, int64 (batch,), the prompt of sequence i is its first lengths[i]
    tokens. The new tokens start at column `length` in each sequence. `options` say how
    the model runs; the batch is the prompt's. Raises PromptError for a prompt that does
    not fit, SpecError for another argument that is not allowed.
    """
    check_tokens(prompt, model.config.vocab_size)
    batch, length = prompt.shape
    cache_size = options.cache_size or max(length + max_new_tokens, 1)
    options = replace(options, batch_size=batch, cache_size=cache_size)
    engine = Engine(model, options)
    engine.check_prompt(prompt, max_new_tokens=max_new_tokens, lengths=lengths)
    return engine.generate(
        prompt.to(model.device),
        max_new_tokens=max_new_tokens,
        lengths=None if lengths is None else lengths.to(model.device),
        sampling=sampling,
    )


class Engine(EngineWeights):
    """A model with its caches, ready to generate.

    The first `filled` positions are the same for every prompt, which starts behind
    them; `fill` sets them. Blocks and head run plain, compiled or fused. Compilation is
    regional: each layer runs the same compiled block. A prompt's block is compiled with
    a dynamic length.
    """

    def __init__(
        self, model: Transformer, options: EngineOptions = EngineOptions()
    ) -> None:
        self.model = model
        self.options = options
        self.cache_size = options.cache_size or model.config.context
        self.filled = 0
        self.caches: Sequence[attention.KVCache] = attention.caches(
            model.config,
            batch_size=options.batch_size,
            cache_size=self.cache_size,
            dtype=model.dtype,
            device=model.device,
            kind=options.kv_cache,
        )
        self._masks: Sequence[attention.CausalMask] = ()
        chunk = PREFILL_CHUNK
        if options.attention == "sdpa":
            chunk, linear = self.cache_size, options.linear_causal_mask
            self._masks = attention.masks(self.caches, chunk, linear=linear)
        self._chunk = options.prefill_chunk or chunk
        block: Callable[..., Tensor] = TransformerBlock.forward
        head: Callable[[Transformer, Tensor], Tensor] = Transformer.head
        self._prefill_block = self._decode_block = block
        self._prefill_head = self._decode_head = head
        self._fused: FusedStep | FusedCpuStep | FusedOwnStep | None = None
        if options.compile_prefill:
            self._prefill_block = torch.compile(block, fullgraph=True, dynamic=True)
        if options.fused:
            if self._masks:
                raise NotRunnable("fused: it needs attention 'decode', not 'sdpa'")
            self._fused = fused_step(model, options)
            self._prefill_head = self._decode_head = self._fused.head
        elif options.compile:
            self._decode_block = torch.compile(block, fullgraph=True, dynamic=False)
            self._decode_head = torch.compile(head, fullgraph=True, dynamic=False)
        # A captured step reads its own tensors, so it is kept and serves each later
        # generation that samples alike.
        self.captured: dict[Hashable, CapturedDecodeStep] = {}
        self._draws = Draws(model.device, model.config.ranks)
        self.injected = InjectedSteps(options.slowdown)
        self.after_chunk: Callable[[int, int], None] = lambda _done, _total: None
        """Called with the tokens of a prompt that are done, and all of them."""

    def longer(self, cache_size: int) -> Engine:
        """An engine over the same weights with a cache of another size, not filled."""
        return Engine(
            self.model, replace(self.options, cache_size=cache_size, slowdown=0.0)
        )

    def copy(self) -> Engine:
        """An engine with weights and caches of its own, of the same values."""
        engine = Engine(deepcopy(self.model), self.options)
        engine.caches, engine.filled = deepcopy(self.caches), self.filled
        return engine

    @torch.no_grad()
    def fill(self, tokens: Tensor) -> None:
        """Fill the first positions with int64 `tokens` (B, T), for every prompt.

        Raises PromptError unless they fit and leave room for a prompt.
        """
        self.filled = 0
        check_tokens(tokens, self.model.config.vocab_size, self.options.batch_size)
        length = tokens.shape[1]
        if length >= self.cache_size:
            raise PromptError(
                f"fill: {length} leaves no room in the cache of {self.cache_size}"
            )
        self._run(tokens.to(self.model.device), None)
        self.filled = length

    def prefill(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (B, vocabulary) after `tokens`, int64 (B, T), behind `filled`.

        With `lengths`, int64 (B,), they follow that many tokens of each sequence.
        """
        return self._prefill_head(self.model, self._run(tokens, lengths))

    def _run(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """The last hidden state of each sequence, (B, dim), chunk by chunk."""
        last: Tensor | None = None
        for first in range(0, tokens.shape[1], self._chunk):
            chunk = tokens[:, first : first + self._chunk]
            start = self.filled + first
            end = start + chunk.shape[1]
            positions = torch.arange(start, end, device=self.model.device)
            x = self._hidden(chunk, positions, self._prefill_block, end)
            self.after_chunk(first + chunk.shape[1], tokens.shape[1])
            if lengths is None:
                last = x[:, -1]
                continue
            rows, ends = torch.arange(len(x), device=x.device), lengths - first
            state = x[rows, (ends - 1).clamp(0, x.shape[1] - 1)]
            # A sequence that ended in an earlier chunk keeps its state.
            ended = (ends <= 0)[:, None]
            last = state if last is None else torch.where(ended, last, state)
        assert last is not None, "a prompt without tokens"
        return last

    def decode(self, token: Tensor, position: Tensor) -> Tensor:
        """Logits (B, V) after int64 `token` (B, 1), at `position`, (1,) or (B, 1)."""
        x = self._hidden(token, position, self._decode_block)
        return self._decode_head(self.model, x[:, -1])

    def _hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        run_block: Callable[..., Tensor],
        end: int | None = None,
    ) -> Tensor:
        """Hidden states (B, T, dim) of `tokens`, (B, T), behind all blocks.

        `end` is how many positions are filled then. Of one token a sequence it may be
        None: only the device knows then.
        """
        started = filled = None
        if self._fused is not None and tokens.numel() <= FUSED_TOKENS:
            x, cos_sin, filled = self._fused.start(self.model, tokens, positions)
            started, run_block = (x, cos_sin), self._fused.block
            # Of a prompt the end is known.
            if end is None and filled is not None:
                seen = Place(cos_sin, positions, VisiblePositions(filled=filled))
                done = self._fused.layers(self.model, x, self.caches, seen)
                if done is not None:
                    return done
        if self._masks:
            # The first tokens attend to one another.
            alone = end == tokens.shape[1]
            visible = attention.visible_by(self._masks, positions, alone=alone)
        elif end is not None:
            visible = VisiblePositions(end=end)
        else:
            filled = positions.flatten() + 1 if filled is None else filled
            visible = VisiblePositions(filled=filled)
        return self.model.hidden(
            tokens,
            positions,
            caches=self.caches,
            visible=visible,
            run_block=run_block,
            started=started,
        )

    def _step(
        self, sampling: Sampling, max_new_tokens: int, *, ragged: bool
    ) -> DecodeStep:
        """A step that samples so, captured where the options say so.

        One kernel chooses the next token where it can, and a prompt of a few tokens is
        captured too.
        """
        draws = self._draws.generator(sampling)
        kernel = None if self._fused is None else self._fused.token_chooser(sampling)
        # The kernel draws from a seed, so that one graph serves every generator.
        generator = draws if kernel is None else None
        sampling = replace(sampling, seed=None, generator=generator)
        step: DecodeStep | None = self.captured.get((sampling, ragged))
        if step is None:
            step = new_step(self, sampling, kernel, room=max_new_tokens, ragged=ragged)
        if kernel is not None and sampling.temperature != 0:
            step.state.seed.random_(generator=draws)
        return step

    def _generate(self, prompt: Tensor, request: Request) -> Iterator[DecodeStep]:
        """Yield the step each time it has chosen a token."""
        count, lengths = request["max_new_tokens"], request.get("lengths")
        sampling = request.get("sampling", Sampling())
        step = self._step(sampling, count, ragged=lengths is not None)
        step.begin(prompt, lengths, self.filled)
        yield step
        for _ in range(count - 1):
            # Repeating a step rewrites the same position with the same values.
            for _ in range(self.injected.next_step()):
                step.repeat()
            step.run()
            yield step

    @torch.no_grad()
    def stream(self, prompt: Tensor, **request: Unpack[Request]) -> Iterator[Tensor]:
        """Yield each new token, int64 (B, 1), on the model's device.

        Waits for the device only on a CPU. `prompt` is int64 (B, T) on the model's
        device and must have passed `check_prompt`.
        """
        for step in self._generate(prompt, request):
            yield step.state.token.clone()

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        *,
        after_token: Callable[[], object] = lambda: None,
        **request: Unpack[Request],
    ) -> Tensor:
        """Generate all `max_new_tokens`, whatever they are; (B, T + new) int64.

        `prompt` is that of `stream`. The new tokens start at column T, also where a
        sequence of the prompt is shorter. `after_token` is called each time that the
        work which chooses a token was given to the device.
        """
        history = prompt[:, :0]
        for step in self._generate(prompt, request):
            history = step.state.history
            after_token()
        return torch.cat([prompt, history[:, : request["max_new_tokens"]]], dim=1)

    @torch.no_grad()
    def observe(
        self, prompt: Tensor, *, observed: int, **request: Unpack[Request]
    ) -> tuple[Tensor, Tensor]:
        """As `generate`; the first `observed` new tokens and the logits of each.

        Tokens are int64 (B, observed), logits (B, observed, V).
        """
        logits: list[Tensor] = []
        for step in self._generate(prompt, request):
            if len(logits) < observed:
                assert step.logits is not None, "a token was chosen from some"
                logits.append(step.logits.clone())
        return step.state.history[:, :observed].clone(), torch.stack(logits, dim=1)

    @torch.no_grad()
    def read(
        self, text: Tensor, prompt_length: int, *, lengths: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Yield the logits (B, V) in front of each further token of `text`.

        Of `text`, int64 (B, T) on the model's device, the first `prompt_length` tokens
        are the prompt, with `lengths` the first lengths[i] of sequence i. Each decode
        step then reads the text's next token, whatever the logits would choose. There
        are T - prompt_length logits, each valid until the next.
        """
        count = text.shape[1] - prompt_length
        prompt, place = text[:, :prompt_length], text.new_tensor([[prompt_length]])
        place = place.repeat(len(text), 1) if lengths is None else lengths[:, None]
        request = Request(max_new_tokens=count, lengths=lengths, sampling=GREEDY)
        for step in self._generate(prompt, request):
            assert step.logits is not None, "a token was chosen from some"
            yield step.logits
            # In place: a captured step reads this tensor.
            step.state.token.copy_(text.gather(1, place))
            place = place + 1

    def check_prompt(
        self, prompt: Tensor, *, max_new_tokens: int, lengths: Tensor | None = None
    ) -> None:
        """Raise PromptError unless the prompt and the new tokens fit."""
        check_fits(self, prompt, max_new_tokens, lengths)

    def cache_tensors(self) -> list[Tensor]:
        """All tensors of the caches and the masks."""
        modules = (*self.caches, *self._masks)
        return list(chain.from_iterable(module.buffers() for module in modules))

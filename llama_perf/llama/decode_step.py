"""One decode step: it updates its token and position in place on the device.

Nothing in it waits for the host, so the whole step can be one CUDA graph: all layers,
the head and the choice of the next token. `CapturedDecodeStep` replays that graph for
every token, and one for a short prompt.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from llama_perf.devices.cuda import capture_graph, warm_up
from llama_perf.kernels.decode_state import DecodeState
from llama_perf.llama.options import Sampling
from llama_perf.rows.spec import FUSED_TOKENS

if TYPE_CHECKING:
    from llama_perf.llama.engine import Engine

ChooseToken = Callable[[Tensor, DecodeState], None]
"""Chooses the next token from logits (B, vocabulary) and advances the state."""


def sample(logits: Tensor, sampling: Sampling) -> Tensor:
    """Draw int64 (B, 1) from `logits`, (B, vocabulary), without waiting for the host.

    The exponential race: argmax of p / e with e drawn from Exp(1) is a draw from p, and
    unlike `torch.multinomial` it needs no synchronisation. The method is gpt-fast's.
    """
    assert sampling.seed is None, "a seed becomes a generator first"
    if sampling.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    scaled, tokens = logits.float() / sampling.temperature, None
    if sampling.top_k is not None and sampling.top_k < scaled.shape[-1]:
        # Unsorted, CUDA selects by radix instead of sorting. Only the best have draws;
        # of those that tie for the last place, as many as there is room for.
        scaled, tokens = scaled.topk(sampling.top_k, dim=-1, sorted=False)
    race = torch.empty_like(scaled).exponential_(1.0, generator=sampling.generator)
    winner = (scaled.softmax(-1) / race).argmax(-1, keepdim=True)
    return winner if tokens is None else tokens.gather(-1, winner)


def choose_by_sample(logits: Tensor, state: DecodeState, *, sampling: Sampling) -> None:
    """Choose the next token operator by operator."""
    token = sample(logits, sampling)
    state.token.copy_(token)
    state.history.index_copy_(1, state.count, token)
    state.count.add_(1)
    state.position.add_(1)


@dataclass(kw_only=True, eq=False)
class DecodeStep:
    """Prefill, then one token after the other.

    `choose` takes the next token from the logits (B, V) of `engine`. `state` has room
    for the tokens of a generation. `logits` are those of the last token, until the next
    step.
    """

    engine: Engine
    choose: ChooseToken
    state: DecodeState
    logits: Tensor | None = None

    def begin(self, prompt: Tensor, lengths: Tensor | None, start: int) -> None:
        """Read `prompt`, (B, T), from position `start` on; choose the first token."""
        # The position of the prompt's last token, from which `choose` advances. Filled
        # on the device: a copy from the host would wait for it.
        if lengths is None:
            self.state.position.fill_(start + prompt.shape[1] - 1)
        else:
            self.state.position.copy_(lengths[:, None] + (start - 1))
        self.state.count.zero_()
        self._next(self.engine.prefill, prompt, lengths)

    def run(self) -> None:
        """Decode `state.token` and choose the next one."""
        self._next(self.engine.decode, self.state.token, self.state.position)

    def repeat(self) -> None:
        """Decode `state.token` again and discard the result: `state` stays."""
        self.engine.decode(self.state.token, self.state.position)

    def _next(self, work: Callable[..., Tensor], *inputs: Tensor | None) -> None:
        # The last logits are freed first: they do not count into the step's peak.
        self.logits = None
        self.logits = work(*inputs)
        self.choose(self.logits, self.state)


class _Captured(NamedTuple):
    """A graph with the tensors that it reads and writes, so that none is freed.

    It does not hold the step, which frees its graphs at once when it is dropped.
    """

    graph: torch.cuda.CUDAGraph
    logits: Tensor | None
    inputs: tuple[Tensor | None, ...] = ()
    start: int = 0


@dataclass(kw_only=True, eq=False)
class CapturedDecodeStep(DecodeStep):
    """A step whose `run` replays a CUDA graph, captured when it first runs.

    A prompt of at most `max_prompt_tokens` tokens is captured too, once for each
    length in `prompts`. `generator` is what `choose` draws from, or None.
    """

    generator: torch.Generator | None
    max_prompt_tokens: int
    prompts: dict[int, _Captured] = field(default_factory=dict)

    def begin(self, prompt: Tensor, lengths: Tensor | None, start: int) -> None:
        """Read `prompt`, by one launch where it is short, and choose the first token.

        The first prompt of its length is run once and captured.
        """
        if prompt.numel() > self.max_prompt_tokens:
            super().begin(prompt, lengths, start)
            return
        captured = self.prompts.get(prompt.shape[1])
        if captured is None or captured.start != start:
            own = prompt.clone(), None if lengths is None else lengths.clone()
            work = partial(super().begin, *own, start)
            warm_up(work)
            captured = _Captured(capture_graph(work), self.logits, own, start)
            self.prompts[prompt.shape[1]] = captured
        for own_input, value in zip(captured.inputs, (prompt, lengths), strict=True):
            if own_input is not None and value is not None:
                own_input.copy_(value)
        captured.graph.replay()
        self.logits = captured.logits

    def run(self) -> None:
        """Decode `state.token` and choose the next one, by one launch."""
        self._step.graph.replay()
        self.logits = self._step.logits

    def repeat(self) -> None:
        """Decode `state.token` again and discard the result, by one launch."""
        self._repeat_graph.replay()

    @cached_property
    def _step(self) -> _Captured:
        """Compiles and tunes all kernels, which no capture allows; undoes that step."""
        generator = self.generator
        draws = None if generator is None else generator.get_state()
        tensors = (self.state.token, self.state.position, self.state.count)
        before = [tensor.clone() for tensor in tensors]
        warm_up(super().run)
        for tensor, saved in zip(tensors, before, strict=True):
            tensor.copy_(saved)
        if generator is not None and draws is not None:
            generator.set_state(draws)
        return _Captured(capture_graph(super().run, generator), self.logits)

    @cached_property
    def _repeat_graph(self) -> torch.cuda.CUDAGraph:
        assert self._step, "it has compiled and tuned all kernels"
        return capture_graph(super().repeat)


def new_step(
    engine: Engine,
    sampling: Sampling,
    kernel: ChooseToken | None,
    *,
    room: int,
    ragged: bool,
) -> DecodeStep:
    """A step that chooses by `kernel`, or else samples operator by operator.

    There is room for `room` tokens. One that the engine's options want captured has
    room for all that its cache holds, and the engine keeps it.
    """
    options, device = engine.options, engine.model.device
    state = DecodeState.room(
        options.batch_size,
        engine.cache_size if options.capture else room,
        ragged=ragged,
        device=device,
    )
    choose = kernel or partial(choose_by_sample, sampling=sampling)
    # A weak reference: the steps belong to the engine, and a dropped engine frees its
    # caches at once.
    step = DecodeStep(engine=weakref.proxy(engine), choose=choose, state=state)
    if not options.capture:
        return step
    captured = CapturedDecodeStep(
        **vars(step),
        generator=sampling.generator,
        max_prompt_tokens=0 if kernel is None else FUSED_TOKENS,
    )
    engine.captured[sampling, ragged] = captured
    return captured


@dataclass
class InjectedSteps:
    """The decode steps that a slowdown repeats: `share` of the steps so far, rounded.

    A part of a step that is owed carries over to the next generation. `run` and
    `repeated` count the steps so far.
    """

    share: float
    run: int = 0
    repeated: int = 0
    # Rounded to the nearest: rounding down, a process of few steps would repeat less.
    _owed: float = 0.5

    def next_step(self) -> int:
        """How often to repeat the next step."""
        self._owed += self.share
        # What sums of a decimal share leave is no step.
        repeats = int(self._owed + 1e-9)
        self._owed -= repeats
        self.run += 1
        self.repeated += repeats
        return repeats

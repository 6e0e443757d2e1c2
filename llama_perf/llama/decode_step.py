"""One decode step: it updates its token and position in place on the device.

Nothing in it waits for the host, so the whole step can be one CUDA graph: all layers,
the head and the choice of the next token. `CapturedDecodeStep` replays that graph for
every token, and one for a short prompt. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from llama_perf.kernels.decode_state import DecodeState
from llama_perf.llama.sampling import ChooseToken

Work = Callable[[], None]
Prefill = Callable[[Tensor, Tensor | None], Tensor]


def warm_up(work: Work) -> None:
    """Run `work` on the stream that it will be captured on."""
    stream = _capture_stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)


def capture_graph(
    work: Work, generator: torch.Generator | None = None
) -> torch.cuda.CUDAGraph:
    """Capture `work`, which is not run; a replay draws from `generator`."""
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph, stream=_capture_stream(torch.cuda.current_device())):
        work()
    return graph


@cache
def _capture_stream(_device: int) -> torch.cuda.Stream:
    """One stream a device: cuBLAS keeps 32 MB for each stream that it has run on."""
    return torch.cuda.Stream()


class DecodeStep:
    """Prefill, then one token after the other.

    `prefill` (prompt, lengths or None) and `decode` (token, position) return logits
    (B, vocabulary), from which `choose` takes the next token. `state` has room for the
    tokens of a generation. `logits` are those of the last token, until the next step.
    """

    logits: Tensor | None = None

    def __init__(
        self,
        prefill: Prefill,
        decode: Callable[[Tensor, Tensor], Tensor],
        choose: ChooseToken,
        state: DecodeState,
    ) -> None:
        self._prefill = prefill
        self._decode = decode
        self._choose = choose
        self.state = state

    def begin(self, prompt: Tensor, lengths: Tensor | None, *, start: int) -> None:
        """Read `prompt`, (B, T), from position `start` on; choose the first token."""
        self._read_prompt(prompt, lengths, start)

    def run(self) -> None:
        """Decode `state.token` and choose the next one."""
        self._run_eagerly()

    def repeat(self) -> None:
        """Decode `state.token` again and discard the result: `state` stays."""
        self._decode(self.state.token, self.state.position)

    def _read_prompt(self, prompt: Tensor, lengths: Tensor | None, start: int) -> None:
        # The position of the prompt's last token, from which `choose` advances. Filled
        # on the device: a copy from the host would wait for it.
        if lengths is None:
            self.state.position.fill_(start + prompt.shape[1] - 1)
        else:
            self.state.position.copy_(lengths[:, None] + (start - 1))
        self.state.count.zero_()
        self._next(self._prefill, prompt, lengths)

    def _run_eagerly(self) -> None:
        self._next(self._decode, self.state.token, self.state.position)

    def _next(self, work: Callable[..., Tensor], *inputs: Tensor | None) -> None:
        # The last logits are freed first: they do not count into the step's peak.
        self.logits = None
        self.logits = work(*inputs)
        self._choose(self.logits, self.state)


class CapturedDecodeStep(DecodeStep):
    """A step whose `run` replays a CUDA graph, captured when it first runs.

    A prompt of at most `max_prompt_tokens` tokens is captured too, once for each
    length. `generator` is what `choose` draws from, or None. `repeats` says whether
    `repeat` will be called, which has its own graph.
    """

    def __init__(
        self,
        prefill: Prefill,
        decode: Callable[[Tensor, Tensor], Tensor],
        choose: ChooseToken,
        state: DecodeState,
        *,
        generator: torch.Generator | None,
        max_prompt_tokens: int = 0,
        repeats: bool = False,
    ) -> None:
        super().__init__(prefill, decode, choose, state)
        self._generator = generator
        self._max_prompt_tokens = max_prompt_tokens
        self._repeats = repeats
        self._graph: torch.cuda.CUDAGraph | None = None
        self._repeat_graph: torch.cuda.CUDAGraph | None = None
        self._graph_logits: Tensor | None = None
        self.prompts: dict[int, _CapturedPrompt] = {}

    def begin(self, prompt: Tensor, lengths: Tensor | None, *, start: int) -> None:
        """Read `prompt`, by one launch where it is short, and choose the first token.

        The first prompt of its length is run once and captured.
        """
        length = prompt.shape[1]
        if prompt.numel() > self._max_prompt_tokens:
            super().begin(prompt, lengths, start=start)
            return
        captured = self.prompts.get(length)
        if captured is None or captured.start != start:
            captured = _CapturedPrompt(self._read_prompt, prompt, lengths, start)
            captured.logits = self.logits
            self.prompts[length] = captured
        captured.run(prompt, lengths)
        self.logits = captured.logits

    def run(self) -> None:
        """Decode `state.token` and choose the next one, by one launch."""
        self._captured_graph().replay()
        self.logits = self._graph_logits

    def repeat(self) -> None:
        """Decode `state.token` again and discard the result, by one launch."""
        self._captured_graph()
        assert self._repeat_graph is not None, "the step was made with repeats"
        self._repeat_graph.replay()

    def _captured_graph(self) -> torch.cuda.CUDAGraph:
        if self._graph is None:
            self._warm_up()
            self._graph = capture_graph(self._run_eagerly, self._generator)
            # A reference keeps the graph from giving their memory to other tensors.
            self._graph_logits = self.logits
            if self._repeats:
                self._repeat_graph = capture_graph(super().repeat)
        return self._graph

    def _warm_up(self) -> None:
        """Compile and tune all kernels, which no capture allows; undo the step."""
        draws = None if self._generator is None else self._generator.get_state()
        tensors = (self.state.token, self.state.position, self.state.count)
        before = [tensor.clone() for tensor in tensors]
        warm_up(self._run_eagerly)
        for tensor, saved in zip(tensors, before, strict=True):
            tensor.copy_(saved)
        if self._generator is not None and draws is not None:
            self._generator.set_state(draws)


class _CapturedPrompt:
    """A prompt of one length, as one graph that reads a copy of it."""

    logits: Tensor | None = None

    def __init__(
        self,
        read_prompt: Callable[[Tensor, Tensor | None, int], None],
        prompt: Tensor,
        lengths: Tensor | None,
        start: int,
    ) -> None:
        self.start = start
        self._prompt = prompt.clone()
        self._lengths = None if lengths is None else lengths.clone()

        def work() -> None:
            read_prompt(self._prompt, self._lengths, start)

        warm_up(work)
        self._graph = capture_graph(work)

    def run(self, prompt: Tensor, lengths: Tensor | None) -> None:
        """Replay the graph on a copy of `prompt`."""
        self._prompt.copy_(prompt)
        if self._lengths is not None and lengths is not None:
            self._lengths.copy_(lengths)
        self._graph.replay()

"""The steps of an engine, one for each way of sampling, and how a generation begins."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llama_perf.kernels.decode_state import DecodeState
from llama_perf.llama.decode_step import CapturedStep, Prefill, Step
from llama_perf.llama.sampling import feeding
from llama_perf.rows.spec import FUSED_TOKENS

if TYPE_CHECKING:
    # It imports Triton.
    from llama_perf.llama.fused import FusedStep


class Steps:
    """Steps of `prefill` and `decode` for `batch` sequences.

    With `capture` each is captured, for generations of at most `cache_size` tokens;
    with `repeats` so are its repeats. With `fused` one kernel chooses the next token
    where it can, and a prompt of a few tokens is captured too.
    """

    def __init__(
        self,
        prefill: Prefill,
        decode: Callable[[Tensor, Tensor], Tensor],
        *,
        batch: int,
        cache_size: int,
        capture: bool,
        repeats: bool,
        fused: FusedStep | None,
        device: torch.device,
    ) -> None:
        self._prefill = prefill
        self._decode = decode
        self._batch = batch
        self._cache_size = cache_size
        self._capture = capture
        self._repeats = repeats
        self._fused = fused
        self._device = device
        # One for each way of sampling: what is captured reads its own tensors.
        self.captured: dict[Hashable, CapturedStep] = {}

    def begin(
        self,
        prompt: Tensor,
        lengths: Tensor | None,
        *,
        behind: int,
        most: int,
        temperature: float,
        top_k: int | None,
        generator: torch.Generator | None,
        after_prefill: Callable[[], None] | None = None,
    ) -> Step:
        """A step that has read `prompt` and chosen the first of `most` tokens.

        `prompt` stands `behind` as many positions. `after_prefill` is called when the
        first token has been chosen.
        """
        kernel = self._fused is not None and self._fused.samples(temperature, top_k)
        # The kernel draws from a seed, so that one graph serves every generator.
        drawn = None if kernel else generator
        key = (temperature, top_k, lengths is None, drawn)
        step: Step
        if key in self.captured:
            step = self.captured[key]
        else:
            feed = feeding(temperature=temperature, top_k=top_k, generator=drawn)
            if kernel and self._fused is not None:
                feed = self._fused.feeding(temperature, top_k)
            fed = DecodeState.room(
                self._batch,
                # What is captured serves every later generation too.
                self._cache_size if self._capture else most,
                ragged=lengths is not None,
                device=self._device,
            )
            parts = (self._prefill, self._decode, feed, fed)
            if self._capture:
                step = self.captured[key] = CapturedStep(
                    *parts,
                    generator=drawn,
                    few=FUSED_TOKENS if kernel else 0,
                    repeats=self._repeats,
                )
            else:
                step = Step(*parts)
        if kernel and temperature != 0:
            step.fed.seed.random_(generator=generator)
        step.begin(prompt, lengths, behind=behind)
        if after_prefill is not None:
            after_prefill()
        return step

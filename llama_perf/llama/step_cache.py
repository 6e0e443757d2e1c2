"""The decode steps of an engine, one for each way of sampling.

A captured step reads its own tensors, so it is kept and serves each later generation
that samples alike.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llama_perf.kernels.decode_state import DecodeState
from llama_perf.llama.decode_step import CapturedDecodeStep, DecodeStep, Prefill
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.sampling import Sampling, token_chooser
from llama_perf.rows.spec import FUSED_TOKENS

if TYPE_CHECKING:
    # It imports Triton.
    from llama_perf.llama.fused import FusedStep


class StepCache:
    """Makes steps of `prefill` and `decode`, and keeps those that are captured.

    A captured step has room for `cache_size` new tokens. With `fused` one kernel
    chooses the next token where it can, and a prompt of a few tokens is captured too.
    """

    def __init__(
        self,
        prefill: Prefill,
        decode: Callable[[Tensor, Tensor], Tensor],
        *,
        options: EngineOptions,
        cache_size: int,
        fused: FusedStep | None,
        device: torch.device,
    ) -> None:
        self._prefill = prefill
        self._decode = decode
        self._options = options
        self._cache_size = cache_size
        self._fused = fused
        self._device = device
        self.captured: dict[Hashable, CapturedDecodeStep] = {}

    def begin(
        self,
        prompt: Tensor,
        lengths: Tensor | None,
        *,
        start: int,
        max_new_tokens: int,
        sampling: Sampling,
    ) -> DecodeStep:
        """A step that has read `prompt`, from position `start`, and chosen a token."""
        sampling = sampling.on(self._device)
        generator = sampling.generator
        kernel = self._fused is not None and self._fused.can_sample(sampling)
        if kernel:
            # The kernel draws from a seed, so that one graph serves every generator.
            sampling = replace(sampling, generator=None)
        step = self._step(
            sampling, max_new_tokens, ragged=lengths is not None, kernel=kernel
        )
        if kernel and sampling.temperature != 0:
            step.state.seed.random_(generator=generator)
        step.begin(prompt, lengths, start=start)
        return step

    def _step(
        self, sampling: Sampling, max_new_tokens: int, *, ragged: bool, kernel: bool
    ) -> DecodeStep:
        key = (sampling, ragged)
        if key in self.captured:
            return self.captured[key]
        capture = self._options.capture
        choose = token_chooser(sampling)
        if kernel and self._fused is not None:
            choose = self._fused.token_chooser(sampling)
        state = DecodeState.room(
            self._options.batch_size,
            self._cache_size if capture else max_new_tokens,
            ragged=ragged,
            device=self._device,
        )
        if not capture:
            return DecodeStep(self._prefill, self._decode, choose, state)
        self.captured[key] = CapturedDecodeStep(
            self._prefill,
            self._decode,
            choose,
            state,
            generator=sampling.generator,
            max_prompt_tokens=FUSED_TOKENS if kernel else 0,
            repeats=self._options.slowdown > 0,
        )
        return self.captured[key]

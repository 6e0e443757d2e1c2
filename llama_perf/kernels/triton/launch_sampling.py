"""Launches of the kernels before and after a step's layers."""

import torch
from torch import Tensor
from triton import next_power_of_2

from llama_perf.kernels.decode_state import DecodeState
from llama_perf.kernels.triton.launch import Launch, run
from llama_perf.kernels.triton.sampling import choose as choose_kernel
from llama_perf.kernels.triton.sampling import start as start_kernel

# The lowest bits of float32 that a dtype does not have.
_SHIFTS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
# Logits that the last program joins: as many as its registers take.
_JOINED = 16384
_START = 1024
# Triton's default; these kernels have no loop to pipeline.
_STAGES = 3


class SamplingKernel:
    """One kernel that chooses the next token and writes it into the `DecodeState`.

    The draw depends only on the seed in `DecodeState` and on the tokens so far.
    """

    def __init__(self, *, temperature: float, top_k: int | None) -> None:
        self._temperature = temperature
        self._top_k = top_k
        self._split_counter: Tensor | None = None

    def launch(
        self, vocabulary: int, dtype: torch.dtype, batch: int = 1
    ) -> Launch | None:
        """For logits of `dtype`; None where the `top_k` best do not fit a program."""
        # As many programs as share the reading, and no more than one can join.
        block = 2048 if vocabulary <= 2**16 else 4096
        parts, greedy = -(-vocabulary // block), self._temperature == 0
        best = vocabulary if greedy or self._top_k is None else self._top_k
        select = best < vocabulary
        slots = min(best, block) if select else 1
        if parts * slots > _JOINED:
            return None
        joined = next_power_of_2(parts * slots)
        how = {"GREEDY": greedy, "SELECT": select, "SHIFT": _SHIFTS[dtype]}
        sizes = {"SLOTS": slots, "BLOCK": block, "PARTS": parts, "JOINED": joined}
        return Launch(
            grid=(parts, batch),
            constants=how | sizes,
            warps=8 if joined <= 8192 else 16,
            stages=_STAGES,
        )

    def __call__(self, logits: Tensor, fed: DecodeState) -> None:
        """Choose from `logits` (B, V); `fed` then has the token and its position."""
        batch, vocabulary = logits.shape
        how = self.launch(vocabulary, logits.dtype, batch)
        assert how is not None, f"the {self._top_k} best"
        if self._split_counter is None:
            # The kernel leaves them 0.
            self._split_counter = torch.zeros(
                batch + 1, dtype=torch.int32, device=logits.device
            )
        shape = (batch, how.grid[0], how.constants["SLOTS"])
        scores, values = logits.new_empty((2, *shape), dtype=torch.float32)
        columns = logits.new_empty(shape, dtype=torch.int32)
        state = (fed.token, fed.position, fed.history, fed.count, fed.seed)
        room = (scores, values, columns, self._split_counter)
        inverse = 1 / self._temperature if self._temperature else 0.0
        sizes = (inverse, vocabulary, fed.history.shape[1], self._top_k or 0)
        arguments = (logits.contiguous(), *state, *room, *sizes)
        ragged = fed.position.ndim == 2
        run(choose_kernel, how, arguments, BATCH=batch, RAGGED=ragged)


def start(
    tokens: Tensor,
    positions: Tensor,
    embedding: Tensor,
    frequencies: Tensor,
    *,
    norm_weight: Tensor | None = None,
    peaks_out: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Hidden states (B, T, dim) of `tokens` (B, T), cosines and sines, visible counts.

    See the kernel. `positions` are int64 (T,), or (B, 1) where each sequence has its
    own; the last result, int64, has for each of them the number of positions up to it.
    """
    tokens, rows = tokens.contiguous(), positions.numel()
    width, half = embedding.shape[1], len(frequencies)
    x = embedding.new_empty((*tokens.shape, width))
    cos, sin = frequencies.new_empty((2, rows, half))
    filled = positions.new_empty(rows)
    block = next_power_of_2(width)
    if peaks_out is None:
        block = min(block, _START)
    sizes = {"D": width, "HALF": half, "BLOCK": block, "BLOCK_H": next_power_of_2(half)}
    grid = (tokens.numel(), -(-width // block))
    how = Launch(grid=grid, constants=sizes, stages=_STAGES)
    inputs = (tokens, positions, embedding, frequencies, norm_weight)
    run(start_kernel, how, (*inputs, x, cos, sin, filled, peaks_out, rows))
    return x, (cos, sin), filled

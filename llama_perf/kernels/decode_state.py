"""The tensors that a step of decoding hands to the next one.

All of it stays on the device, so that a whole step can be one CUDA graph.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeState:
    """Tensors that a step of decoding reads and updates in place.

    `token` is int64 (B, 1), `position`, where it is read, int64 (1,) or (B, 1);
    `history`, int64 (B, N), holds the `count`, int64 (1,), tokens since the beginning.
    `seed`, int64 (1,), is read by the kernel that draws without a generator.
    """

    token: Tensor
    position: Tensor
    history: Tensor
    count: Tensor
    seed: Tensor

    @classmethod
    def room(
        cls, batch: int, max_tokens: int, *, ragged: bool, device: torch.device
    ) -> "DecodeState":
        """For `max_tokens` of each sequence, with positions of its own if `ragged`."""
        zeros = partial(torch.zeros, dtype=torch.int64, device=device)
        return cls(
            token=zeros(batch, 1),
            position=zeros(batch, 1) if ragged else zeros(1),
            history=zeros(batch, max_tokens),
            count=zeros(1),
            seed=zeros(1),
        )

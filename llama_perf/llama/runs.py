"""How an engine runs a model's blocks and its head: as they are, compiled, or fused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llama_perf.llama.transformer import Transformer, TransformerBlock

if TYPE_CHECKING:
    # It imports Triton.
    from llama_perf.llama.fused import FusedStep

RunBlock = Callable[..., Tensor]
RunHead = Callable[[Transformer, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """What is called for a block and for the head, of a prompt and in a step."""

    decode_block: RunBlock
    decode_head: RunHead
    prefill_block: RunBlock
    prefill_head: RunHead


def chosen_runs(
    fused: FusedStep | None, *, compile: bool, compile_prefill: bool
) -> Runs:
    """Regional compilation: every layer runs the same compiled block.

    A prompt's is compiled with a dynamic length. `fused` takes the place of all that
    runs a few tokens.
    """
    block: RunBlock = TransformerBlock.forward
    head: RunHead = Transformer.head
    prefill_block = block
    if compile_prefill:
        prefill_block = torch.compile(block, fullgraph=True, dynamic=True)
    if fused is not None:
        return Runs(
            decode_block=fused.block,
            decode_head=fused.head,
            prefill_block=fused.block_or(prefill_block),
            prefill_head=fused.head,
        )
    decode_block, decode_head = block, head
    if compile:
        decode_block = torch.compile(block, fullgraph=True, dynamic=False)
        decode_head = torch.compile(head, fullgraph=True, dynamic=False)
    return Runs(
        decode_block=decode_block,
        decode_head=decode_head,
        prefill_block=prefill_block,
        prefill_head=head,
    )

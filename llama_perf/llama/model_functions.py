"""The functions that run a model's blocks and head: plain, compiled or fused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llama_perf.llama.options import EngineOptions
from llama_perf.llama.transformer import Transformer, TransformerBlock

if TYPE_CHECKING:
    # It imports Triton.
    from llama_perf.llama.fused import FusedStep

RunBlock = Callable[..., Tensor]
RunHead = Callable[[Transformer, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFunctions:
    """Each is called with a block, or with the model for its head, and their inputs."""

    decode_block: RunBlock
    decode_head: RunHead
    prefill_block: RunBlock
    prefill_head: RunHead


def model_functions(options: EngineOptions, fused: FusedStep | None) -> ModelFunctions:
    """The functions for `options`; `fused` runs whatever has few enough tokens.

    Compilation is regional: each layer runs the same compiled block. A prompt's block
    is compiled with a dynamic length.
    """
    block: RunBlock = TransformerBlock.forward
    head: RunHead = Transformer.head
    prefill_block = block
    if options.compile_prefill:
        prefill_block = torch.compile(block, fullgraph=True, dynamic=True)
    if fused is not None:
        return ModelFunctions(
            decode_block=fused.block,
            decode_head=fused.head,
            prefill_block=fused.block_or(prefill_block),
            prefill_head=fused.head,
        )
    decode_block, decode_head = block, head
    if options.compile:
        decode_block = torch.compile(block, fullgraph=True, dynamic=False)
        decode_head = torch.compile(head, fullgraph=True, dynamic=False)
    return ModelFunctions(
        decode_block=decode_block,
        decode_head=decode_head,
        prefill_block=prefill_block,
        prefill_head=head,
    )

"""What a generation is asked for: how an engine runs, and how tokens are drawn."""

from dataclasses import dataclass, fields
from typing import Required, TypedDict

import torch
from torch import Tensor

from llama_perf.errors import SpecError, check_positive
from llama_perf.llama.fused_product import FusedProduct
from llama_perf.rows.bounds import check_sampling
from llama_perf.rows.choices import ATTENTIONS, check_choice, check_fused
from llama_perf.rows.spec import RowSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is drawn from the logits.

    `temperature` 0 is greedy; `top_k` None draws from the whole vocabulary. With a
    `seed` the draws are repeatable on one type of device. A `generator` of the model's
    device does the same over several generations. Raises SpecError.
    """

    temperature: float = 0.8
    top_k: int | None = 200
    seed: int | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_sampling(temperature=self.temperature, top_k=self.top_k)
        if self.seed is not None and self.generator is not None:
            raise SpecError("seed", self.seed, "allowed: a seed or a generator")


GREEDY = Sampling(temperature=0.0)


class Request(TypedDict, total=False):
    """What is generated behind a prompt, int64 (B, T).

    With `lengths`, int64 (B,) on the model's device, the prompt of sequence i is its
    first lengths[i] tokens; the rest is not read.
    """

    max_new_tokens: Required[int]
    lengths: Tensor | None
    sampling: Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """How an engine runs a model; the fields are a row's. Raises SpecError.

    `cache_size` counts the positions of the KV cache. None allocates those the model
    was trained for, and in `llama_perf.generate` as many as the call needs. `kv_cache`
    is None, "int8" or "fp8". `attention` is "decode" or "sdpa" (see
    `llama_perf.llama.attention`), and `linear_causal_mask` is for "sdpa".
    `prefill_chunk` tokens of a prompt run at a time. None runs `PREFILL_CHUNK` of them
    on the "decode" path and the whole prompt on the "sdpa" path.

    `compile` compiles one block and the head for decoding, `compile_prefill` the block
    for a prompt, with a dynamic length. `capture` replays each decode step as one CUDA
    graph. `fused` runs a decode step, and a prompt of a few tokens, on
    `llama_perf.llama.fused`, on a CPU `fused_cpu`, instead of the blocks' modules. With
    "persistent" all layers of a step are one kernel (`llama_perf.llama.persistent`).
    With an `own_product` its products are that one's (`llama_perf.llama.fused_own`).

    `slowdown` repeats that share of the decode steps and discards the results, see
    `llama_perf.llama.decode_step.InjectedSteps`. It is a switch for testing the gate.
    """

    batch_size: int = 1
    cache_size: int | None = None
    kv_cache: str | None = None
    attention: str = "decode"
    linear_causal_mask: bool = False
    prefill_chunk: int | None = None
    compile: bool = False
    compile_prefill: bool = False
    capture: bool = False
    fused: bool | str = False
    own_product: FusedProduct | None = None
    slowdown: float = 0.0

    def __post_init__(self) -> None:
        check_choice("attention", self.attention, ATTENTIONS)
        check_fused(self.fused)
        if self.cache_size is not None:
            check_positive("cache_size", self.cache_size)

    @classmethod
    def of(
        cls,
        row: RowSpec,
        *,
        own_product: FusedProduct | None = None,
        slowdown: float = 0.0,
    ) -> "EngineOptions":
        """The options that `row` asks for."""
        given = {"cache_size", "own_product", "slowdown"}
        names = {field.name for field in fields(cls)} - given
        same = {name: getattr(row, name) for name in names}
        return cls(
            **same,
            cache_size=row.allocated_positions,
            own_product=own_product,
            slowdown=slowdown,
        )

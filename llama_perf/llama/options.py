"""What an engine is asked for: its sizes and how it runs a model."""

from dataclasses import dataclass, fields

from llama_perf.errors import SpecError
from llama_perf.rows.spec import RowSpec, check_attention


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
    `llama_perf.llama.fused` instead of the blocks' modules.

    `slowdown` repeats that share of the decode steps and discards the results. It is
    a switch for testing the gate, see docs/gate.md.
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
    fused: bool = False
    slowdown: float = 0.0

    def __post_init__(self) -> None:
        check_attention(self.attention)
        size = self.cache_size
        if size is not None and size < 1:
            raise SpecError("cache_size", size, "allowed: 1 or more positions")

    @classmethod
    def of(cls, row: RowSpec, *, slowdown: float = 0.0) -> "EngineOptions":
        """The options that `row` asks for."""
        names = {field.name for field in fields(cls)} - {"cache_size", "slowdown"}
        same = {name: getattr(row, name) for name in names}
        return cls(**same, cache_size=row.allocated_positions, slowdown=slowdown)

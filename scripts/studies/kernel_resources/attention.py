"""Compile the attention kernel without a GPU: its table of docs/kernels.md.

As it would be launched for one sequence at the heads of Llama-2-7B and Llama-3-8B, for
every cache and dtype and each architecture, with the output projection to prefetch, and
from sm_90 on with dependent launches. Says nothing of speed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llama_perf.kernels import cache_codes
from llama_perf.kernels.triton.attention import attend_in_splits
from llama_perf.kernels.triton.launch_attention import LINE, Shape, launch
from llama_perf.llama.presets import preset
from scripts.doc_tables.document import place
from scripts.studies.kernel_resources.resources import (
    CAPABILITIES,
    MODELS,
    POINTERS,
    Kernel,
    Resources,
    compile_kernel,
    starts_early,
    write_table,
)

PLACE = place("kernels.md", "attention")
POSITIONS = 131072


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A model's heads, the dtype of its activations, and the kind of its cache."""

    model: str
    dtype: torch.dtype
    kind: torch.dtype | None

    @property
    def cells(self) -> tuple[str, str, str]:
        """How the table names it."""
        names = {cache_codes.INT8: "int8", cache_codes.FP8: "fp8", None: "unquantized"}
        return self.model, str(self.dtype).removeprefix("torch."), names[self.kind]


VARIANTS = tuple(
    Variant(model=model, dtype=dtype, kind=kind)
    for model in MODELS
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for kind in (None, cache_codes.INT8, cache_codes.FP8)
)


def compile_one(variant: Variant, capability: int) -> Resources:
    """Compile one launch for one architecture."""
    config, kind = preset(variant.model), variant.kind
    dependent = starts_early(capability)
    shape = Shape(
        batch=1,
        kv_heads=config.n_kv_heads,
        group=config.n_heads // config.n_kv_heads,
        width=config.head_dim,
        positions=POSITIONS,
        kind=kind,
        dtype=variant.dtype,
        ragged=False,
    )
    # The output projection in bfloat16.
    lines = config.dim * config.dim * 2 // LINE
    how = launch(shape, prefetch_lines=lines, dependent=dependent)
    activations = POINTERS[variant.dtype]
    values = POINTERS[variant.dtype if kind is None else kind]
    scales = values if kind is None else POINTERS[cache_codes.SCALE]
    kernel = Kernel(
        function=attend_in_splits,
        pointers={
            "q": activations,
            "k_cache": values,
            "v_cache": values,
            "k_scale": scales,
            "v_scale": scales,
            "split_counter": "*i32",
            "filled": "*i64",
            "parts": "*fp32",
            "sums": "*fp32",
            "out": activations,
            "peaks_out": "*i32",
            "next_weight": "*i32",
        },
        sizes={"S": POSITIONS % 16 == 0},
        constants=how.constants,
        warps=how.warps,
        stages=how.stages,
        dependent=dependent,
    )
    return compile_kernel(kernel, capability)


def main() -> int:
    """Write the table; how many launches spill."""
    rows, spills = [], 0
    for variant in VARIANTS:
        print(*variant.cells, flush=True)
        launches = [compile_one(variant, capability) for capability in CAPABILITIES]
        spills += sum(launch.spilled_bytes > 0 for launch in launches)
        cells = [
            f"{launch.registers}, {launch.spilled_bytes},"
            f" {launch.shared_bytes / 1024:.0f}"
            for launch in launches
        ]
        rows.append((*variant.cells, *cells))
    write_table(PLACE, ["heads of", "dtype", "cache"], rows)
    return spills

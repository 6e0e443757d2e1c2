"""Compile the attention kernel without a card; its own table of docs/kernels.md.

As it would be launched for one sequence at the heads of Llama-2-7B and Llama-3-8B, for
every cache and dtype and each architecture, asking ahead for the output projection and
from sm_90 on with dependent launches. Says nothing of speed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tabulate import tabulate

from llama_perf.kernels import cache_codes
from llama_perf.kernels.triton.attention import attend_in_splits
from llama_perf.kernels.triton.dependent_launch import EARLY_SINCE
from llama_perf.kernels.triton.launch_attention import LINE, launch
from llama_perf.llama.presets import preset
from scripts.doc_tables.document import place, replace_between
from scripts.studies.kernel_resources.products import (
    CAPABILITIES,
    MODELS,
    Resources,
    compile_launch,
)

PLACE = place("kernels.md", "attention")
POSITIONS = 131072
_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    cache_codes.INT8: "*i8",
    cache_codes.FP8: "*u8",
}


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


def starts_early(capability: int) -> bool:
    """`triton_launch.may_start_early` of an architecture, such as 90."""
    return divmod(capability, 10) >= EARLY_SINCE


def compile_one(variant: Variant, capability: int) -> Resources:
    """Compile one launch for one architecture."""
    config, kind = preset(variant.model), variant.kind
    early = starts_early(capability)
    chosen = launch(
        batch=1,
        heads=config.n_kv_heads,
        group=config.n_heads // config.n_kv_heads,
        width=config.head_dim,
        positions=POSITIONS,
        kind=kind,
        dtype=variant.dtype,
        ragged=False,
        # The output projection in bfloat16.
        lines=config.dim * config.dim * 2 // LINE,
        early=early,
    )
    values = _POINTERS[variant.dtype if kind is None else kind]
    scales = values if kind is None else _POINTERS[cache_codes.SCALE]
    return compile_launch(
        attend_in_splits,
        pointers={
            "q": _POINTERS[variant.dtype],
            "k_cache": values,
            "v_cache": values,
            "k_scale": scales,
            "v_scale": scales,
            "arrivals": "*i32",
            "filled": "*i64",
            "parts": "*fp32",
            "sums": "*fp32",
            "out": _POINTERS[variant.dtype],
            "left": "*i32",
            "ahead": "*i32",
        },
        sizes={"S": POSITIONS % 16 == 0},
        constants=chosen.constants,
        warps=chosen.warps,
        stages=chosen.stages,
        capability=capability,
        dependent=early,
    )


def main() -> int:
    """Write the table; 1 if a kernel spills."""
    rows, spills = [], 0
    for variant in VARIANTS:
        print(*variant.cells, flush=True)
        taken = [compile_one(variant, each) for each in CAPABILITIES]
        spills += sum(each.spilled_bytes > 0 for each in taken)
        cells = [
            f"{each.registers}, {each.spilled_bytes}, {each.shared_bytes / 1024:.0f}"
            for each in taken
        ]
        rows.append((*variant.cells, *cells))
    headers = ["heads of", "dtype", "cache", *(f"sm_{each}" for each in CAPABILITIES)]
    table = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
    replace_between(*PLACE, table)
    print(table)
    return 1 if spills else 0

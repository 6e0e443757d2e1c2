"""Compile the fused kernels without a GPU: their table of docs/kernels.md.

As a step of Llama-2-7B and Llama-3-8B would launch them, with bfloat16 activations, for
each architecture, from sm_90 on with dependent launches. Says nothing of speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from llama_perf.kernels import cache_codes
from llama_perf.kernels.packing import LANES, sparse_values, words
from llama_perf.kernels.triton.codes import INT8
from llama_perf.kernels.triton.fused import ADD, GATE, project, project_heads
from llama_perf.kernels.triton.launch_attention import KINDS
from llama_perf.kernels.triton.launch_fused import fused_launch
from llama_perf.kernels.weight import CODES, SPARSE, Packed, of_floats
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.presets import preset
from scripts.doc_tables.document import place
from scripts.studies.kernel_resources.products import VARIANTS, Variant
from scripts.studies.kernel_resources.resources import (
    MODELS,
    POINTERS,
    Kernel,
    Resources,
    Row,
    compile_kernel,
    document_formats,
    starts_early,
)

PLACE = place("kernels.md", "fused")
TOKENS = (1, 6)
BFLOAT16 = Variant(name="bfloat16", bits=16)
FUSED = (BFLOAT16, *(variant for variant in VARIANTS if not variant.wide))
"""All but float8dq, which has no fused kernel."""
ORDER: list[Row] = [(variant.name, tokens) for variant in FUSED for tokens in TOKENS]
"""The rows of the table."""
KERNELS = ("heads", "add", "gate")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One of `KERNELS` in a layer of `config`; `kind` is that of the cache."""

    variant: Variant
    kernel: str
    config: ModelConfig
    tokens: int = 1
    kind: torch.dtype | None = None


def weight(variant: Variant, rows: int, columns: int) -> Packed:
    """A weight of that format on the meta device."""
    meta = torch.device("meta")
    if variant is BFLOAT16:
        shape = (rows, columns)
        return of_floats(torch.empty(shape, dtype=torch.bfloat16, device=meta))
    values = sparse_values(columns) if variant.sparse else columns
    shape_of_codes = (-(-rows // LANES), words(variant.bits, values), LANES)
    grouped = variant.group or variant.sparse
    dtype = torch.float16 if grouped else torch.float32
    zeros = {0: dtype, 1: torch.int32, 2: torch.int32, 3: torch.float16}
    return Packed(
        rows=rows,
        columns=columns,
        codes=torch.empty(shape_of_codes, dtype=torch.int32, device=meta),
        scale=torch.empty(0, dtype=dtype, device=meta),
        zero=torch.empty(0, dtype=zeros[variant.zero], device=meta),
        format=SPARSE if variant.sparse else CODES,
        bits=variant.bits,
        decode=INT8.value if variant.dynamic else variant.decode,
        group=variant.group,
        zero_kind=variant.zero,
        dynamic=variant.dynamic,
    )


def compile_one(case: Case, capability: int) -> Resources:
    """Compile one launch for one architecture."""
    config, gate, heads = case.config, case.kernel == "gate", case.kernel == "heads"
    dim, hidden = config.dim, config.intermediate_size
    rows, columns = (config.qkv_size, dim) if heads else (dim, hidden)
    if gate:
        rows, columns = columns, rows
    packed = weight(case.variant, rows, columns)
    pointers, constants = _heads(case, packed) if heads else _product(case, packed)
    launch = fused_launch(packed, case.tokens, weights=2 if gate else 1)
    dependent = starts_early(capability)
    sizes = {"M": False, "N": True}
    kernel = Kernel(
        function=project_heads if heads else project,
        pointers={
            "x": "*bf16",
            "norm_weight": "*bf16",
            **_weight_pointers(packed),
            **pointers,
            "parts": "*fp32",
            "squares": "*fp32",
            "split_counter": "*i32",
        },
        floats=("EPS",),
        sizes=sizes | dict.fromkeys(("S", "LENGTH"), False) if heads else sizes,
        constants={**launch.constants, **constants, "DEPENDENT": dependent},
        warps=launch.warps,
        stages=launch.stages,
        dependent=dependent,
    )
    return compile_kernel(kernel, capability)


def _product(case: Case, packed: Packed) -> tuple[dict[str, str], dict[str, Any]]:
    """The pointers and constants that are those of `project` only."""
    gate = case.kernel == "gate"
    pointers = {
        **{f"{name}2": type for name, type in _weight_pointers(packed).items()},
        "out": "*bf16",
        **dict.fromkeys(("peaks_in", "peaks_out", "cleared_peaks"), "*i32"),
        "next_norm_weight": "*bf16",
    }
    constants = {
        "NORM": gate,
        "WHAT": (GATE if gate else ADD).value,
        "READS_PEAKS": packed.dynamic,
        "WRITES_PEAKS": packed.dynamic,
        # Those of the next product, and of attention behind that.
        "CLEARED_PEAKS": 16 if packed.dynamic and gate else 0,
    }
    return pointers, constants


def _heads(case: Case, packed: Packed) -> tuple[dict[str, str], dict[str, Any]]:
    """The pointers and constants that are those of `project_heads` only."""
    config, kind = case.config, case.kind
    cache = POINTERS[torch.bfloat16 if kind is None else kind]
    scales = cache if kind is None else POINTERS[cache_codes.SCALE]
    pointers = {
        "cos": "*fp32",
        "sin": "*fp32",
        "positions": "*i64",
        "q": "*bf16",
        "k_cache": cache,
        "v_cache": cache,
        "k_scale": scales,
        "v_scale": scales,
        "peaks_in": "*i32",
    }
    width = config.head_dim
    constants = {
        "HEADS": config.n_heads,
        "KV_HEADS": config.n_kv_heads,
        "D": width,
        "BLOCK_D": 1 << (width - 1).bit_length(),
        "KIND": KINDS[kind],
        "RAGGED": False,
        "READS_PEAKS": packed.dynamic,
    }
    return pointers, constants


def _weight_pointers(packed: Packed) -> dict[str, str]:
    return {
        "codes": POINTERS[packed.codes.dtype],
        "scale": POINTERS[packed.scale.dtype],
        "zero": POINTERS[packed.zero.dtype],
    }


def compile_all(variant: Variant, tokens: int, capability: int) -> Iterator[Resources]:
    """Every kernel of a layer of both models; that of the heads for every cache."""
    for model in MODELS:
        for kernel in KERNELS:
            for kind in KINDS if kernel == "heads" else (None,):
                case = Case(
                    variant=variant,
                    kernel=kernel,
                    config=preset(model),
                    tokens=tokens,
                    kind=kind,
                )
                yield compile_one(case, capability)


def main(names: Sequence[str]) -> int:
    """Write the rows of the formats named, keep the others; how many cells spill."""
    compilers: dict[Row, Callable[[int], Iterator[Resources]]] = {
        (variant.name, tokens): partial(compile_all, variant, tokens)
        for variant in FUSED
        for tokens in TOKENS
        if variant.name in names
    }
    return document_formats(PLACE, ORDER, compilers)

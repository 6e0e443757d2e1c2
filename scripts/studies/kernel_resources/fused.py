"""Compile the fused kernels without a card; their own table of docs/kernels.md.

As a step of Llama-2-7B and Llama-3-8B would launch them, with bfloat16 activations, for
each architecture, from sm_90 on with dependent launches. Says nothing of speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tabulate import tabulate

from llama_perf.kernels import cache_codes
from llama_perf.kernels.packing import LANES, words
from llama_perf.kernels.sparse import kept
from llama_perf.kernels.triton.codes import INT8
from llama_perf.kernels.triton.fused import ADD, GATE, project, project_heads
from llama_perf.kernels.triton.launch_attention import KINDS
from llama_perf.kernels.triton.launch_fused import fused_launch
from llama_perf.kernels.weight import CODES, SPARSE, Packed, plain
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.presets import preset
from scripts.doc_tables.document import place, replace_between, rows_between
from scripts.studies.kernel_resources.attention import starts_early
from scripts.studies.kernel_resources.products import (
    CAPABILITIES,
    MODELS,
    VARIANTS,
    Resources,
    Variant,
    compile_launch,
)

PLACE = place("kernels.md", "fused")
TOKENS = (1, 6)
BFLOAT16 = Variant(name="bfloat16", bits=16)
FUSED = (BFLOAT16, *(each for each in VARIANTS if not each.wide))
"""All but float8dq, which has no fused kernel."""
KERNELS = ("heads", "add", "gate")
_FLOATS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
_CODES = {cache_codes.INT8: "*i8", cache_codes.FP8: "*u8", torch.int32: "*i32"}
_POINTERS = _FLOATS | _CODES


def weight(variant: Variant, rows: int, columns: int) -> Packed:
    """A weight of that format on the meta device."""
    meta = torch.device("meta")
    if variant is BFLOAT16:
        shape = (rows, columns)
        return plain(torch.empty(shape, dtype=torch.bfloat16, device=meta))
    blocks, count = -(-rows // LANES), kept(columns) if variant.sparse else columns
    held = words(variant.bits, count)
    codes = torch.empty((blocks, held, LANES), dtype=torch.int32, device=meta)
    grouped = variant.group or variant.sparse
    dtype = torch.float16 if grouped else torch.float32
    scale = torch.empty(0, dtype=dtype, device=meta)
    zeros = {0: dtype, 1: torch.int32, 2: torch.int32, 3: torch.float16}
    return Packed(
        rows=rows,
        columns=columns,
        codes=codes,
        scale=scale,
        zero=torch.empty(0, dtype=zeros[variant.zero], device=meta),
        format=SPARSE if variant.sparse else CODES,
        bits=variant.bits,
        decode=INT8.value if variant.dynamic else variant.decode,
        group=variant.group,
        zero_kind=variant.zero,
        dynamic=variant.dynamic,
    )


def compile_one(
    variant: Variant,
    kernel: str,
    config: ModelConfig,
    tokens: int,
    capability: int,
    *,
    kind: torch.dtype | None = None,
) -> Resources:
    """Compile one of `KERNELS` for one architecture; `kind` is that of the cache."""
    dim, hidden = config.dim, config.intermediate_size
    if kernel == "heads":
        return _heads(
            weight(variant, config.qkv_size, dim), config, tokens, capability, kind
        )
    gate = kernel == "gate"
    packed = weight(variant, *((hidden, dim) if gate else (dim, hidden)))
    constants = {
        "NORM": gate,
        "WHAT": (GATE if gate else ADD).value,
        "PEAKED": packed.dynamic,
        "LEAVES": packed.dynamic,
        # Those of what comes next, and of attention behind that.
        "CLEARS": 16 if packed.dynamic and gate else 0,
    }
    pointers = {
        **_inputs(packed),
        **{f"{name}2": each for name, each in _weights(packed).items()},
        "out": "*bf16",
        **dict.fromkeys(("peak", "left", "cleared"), "*i32"),
        "next_gain": "*bf16",
        "parts": "*fp32",
        "squares": "*fp32",
        "arrivals": "*i32",
    }
    sizes = {"M": False, "N": True}
    pair = 2 if gate else 1
    return _compile(
        project, packed, tokens, pair, pointers, sizes, constants, capability
    )


def _heads(
    packed: Packed,
    config: ModelConfig,
    tokens: int,
    capability: int,
    kind: torch.dtype | None,
) -> Resources:
    cache = _POINTERS[torch.bfloat16 if kind is None else kind]
    scales = cache if kind is None else _POINTERS[cache_codes.SCALE]
    pointers = {
        **_inputs(packed),
        "cos": "*fp32",
        "sin": "*fp32",
        "positions": "*i64",
        "q": "*bf16",
        "k_cache": cache,
        "v_cache": cache,
        "k_scale": scales,
        "v_scale": scales,
        "peak": "*i32",
        "parts": "*fp32",
        "squares": "*fp32",
        "arrivals": "*i32",
    }
    width = config.head_dim
    constants = {
        "HEADS": config.n_heads,
        "KV_HEADS": config.n_kv_heads,
        "D": width,
        "BLOCK_D": 1 << (width - 1).bit_length(),
        "KIND": KINDS[kind],
        "RAGGED": False,
        "PEAKED": packed.dynamic,
    }
    sizes = {"M": False, "N": True, "S": False, "LENGTH": False}
    return _compile(
        project_heads, packed, tokens, 1, pointers, sizes, constants, capability
    )


def _weights(packed: Packed) -> dict[str, str]:
    return {
        "codes": _POINTERS[packed.codes.dtype],
        "scale": _POINTERS[packed.scale.dtype],
        "zero": _POINTERS[packed.zero.dtype],
    }


def _inputs(packed: Packed) -> dict[str, str]:
    return {"x": "*bf16", "gain": "*bf16", **_weights(packed)}


def _compile(
    kernel: Any,
    packed: Packed,
    tokens: int,
    weights: int,
    pointers: dict[str, str],
    sizes: dict[str, bool],
    constants: dict[str, Any],
    capability: int,
) -> Resources:
    chosen = fused_launch(packed, tokens, weights=weights)
    early = starts_early(capability)
    return compile_launch(
        kernel,
        pointers=pointers,
        floats=("EPS",),
        sizes=sizes,
        constants={**chosen.constants, **constants, "DEPENDENT": early},
        warps=chosen.warps,
        stages=chosen.stages,
        capability=capability,
        dependent=early,
    )


def compile_all(variant: Variant, tokens: int, capability: int) -> Iterator[Resources]:
    """Every kernel of a layer of both models; of the heads' one every cache."""
    for model in MODELS:
        config = preset(model)
        for kernel in KERNELS:
            kinds = KINDS if kernel == "heads" else (None,)
            for kind in kinds:
                yield compile_one(
                    variant, kernel, config, tokens, capability, kind=kind
                )


def documented() -> dict[tuple[str, int], list[str]]:
    """The cells of docs/kernels.md by format and tokens."""
    rows = rows_between(*PLACE)
    return {(row[0], int(row[1])): row[2:] for row in rows}


def main(names: Sequence[str]) -> int:
    """Write the rows of the formats named, keep the others; 1 if a kernel spills."""
    cells = documented()
    spilled = 0
    for variant in FUSED:
        for tokens in TOKENS if variant.name in names else ():
            found = []
            for capability in CAPABILITIES:
                print(f"fused {variant.name}, {tokens} tokens, sm_{capability}")
                taken = list(compile_all(variant, tokens, capability))
                most = max(each.registers for each in taken)
                spills = max(each.spilled_bytes for each in taken)
                found.append(f"{most}, {spills}")
                spilled += spills
            cells[variant.name, tokens] = found
    order = [(variant.name, tokens) for variant in FUSED for tokens in TOKENS]
    rows = [(*key, *cells[key]) for key in order if key in cells]
    headers = ["format", "tokens", *(f"sm_{each}" for each in CAPABILITIES)]
    table = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
    replace_between(*PLACE, table)
    print(table)
    return 1 if spilled else 0

"""`python -m scripts.studies.kernel_resources`: docs/kernels.md's tables of resources.

Compiles every Triton kernel that Llama-2-7B and Llama-3-8B launch: those of the
products, of a fused layer and of attention, with bfloat16 activations but where a row
names others, for each architecture; from sm_90 on with dependent launches. Needs Triton
and no GPU, and says nothing of speed.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import product as pairs
from typing import Any

import torch
from torch import Tensor

from llama_perf.kernels import cache_codes, weight
from llama_perf.kernels.cache_codes import CachedTensors
from llama_perf.kernels.packing import LANES
from llama_perf.kernels.triton import launch_fused as fused
from llama_perf.kernels.triton.launch_attention import split_attention
from llama_perf.kernels.triton.launch_products import product
from llama_perf.kernels.weight import Packed
from llama_perf.llama.config import ModelConfig, preset
from scripts.doc_tables.document import Table, place
from scripts.studies.compile_only import compiled

CAPABILITIES = (80, 90, 100)
MODELS = ("Llama-2-7b-chat-hf", "Meta-Llama-3-8B")
# A step of decoding, the published table's prompt, and a prompt on tensor cores.
TOKENS = (1, 6, 64)
POSITIONS = 131072
KERNELS = ("heads", "add", "gate")
DTYPES = ("bfloat16", "float16", "float32")
CACHES = {"unquantized": None, "int8": cache_codes.INT8, "fp8": cache_codes.FP8}

FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {"format": weight.FLOATS, "bits": 16},
    "int8wo": {"decode": weight.INT8},
    "int8dq": {"decode": weight.INT8, "activations": "int8"},
    "int4wo-64": {"bits": 4, "group": 64, "zero_kind": weight.OFFSET},
    "uintx-4-64": {"bits": 4, "group": 64, "zero_kind": weight.PACKED},
    "uintx-2-8": {"bits": 2, "group": 8, "zero_kind": weight.PACKED},
    "uintx-3-64": {"bits": 3, "group": 64, "zero_kind": weight.PACKED},
    "fp6": {"bits": 6, "decode": weight.FP6},
    "float8wo": {"decode": weight.FLOAT8},
    "float8dq": {"decode": weight.FLOAT8},
    "sparse-marlin": {"bits": 6, "format": weight.SPARSE},
}
"""What `Packed` says of a weight of each format."""
PRODUCTS = [name for name in FORMATS if name != "bfloat16"]
FUSED = [name for name in FORMATS if name != "float8dq"]
"""All but float8dq, which has no fused kernel."""


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without values."""
    return torch.empty(shape, dtype=dtype, device="meta")


def packed(name: str, rows: int, columns: int) -> Packed:
    """A weight of FORMATS on the meta device."""
    if name == "bfloat16":
        return weight.of_floats(empty(rows, columns))
    format, blocks = FORMATS[name], -(-rows // LANES)
    sparse, kind = "sparse" in name, format.get("zero_kind", 0)
    dtype = torch.float16 if kind or sparse else torch.float32
    scale = empty(blocks, LANES, dtype=dtype)
    zero = empty(0, dtype=torch.int32 if kind == weight.PACKED else dtype)
    linear = Packed(scale, scale, zero, rows, columns, **format)
    codes = empty(blocks, linear.layout.WORDS, LANES, dtype=torch.int32)
    return replace(linear, codes=codes)


def shapes() -> list[tuple[int, int]]:
    """(N, K) of every linear of the two models, once each."""
    sizes = set()
    for config in map(preset, MODELS):
        dim, hidden = config.dim, config.intermediate_size
        sizes |= {(config.qkv_size, dim), (dim, dim), (hidden, dim), (dim, hidden)}
        sizes.add((config.vocab_size, dim))
    return sorted(sizes)


def launch_product(name: str, tokens: int, rows: int, columns: int) -> None:
    """The product of a linear with a weight of FORMATS."""
    linear = packed(name, rows, columns)
    dynamic = linear.dynamic
    x = empty(tokens, columns, dtype=torch.int8 if dynamic else torch.bfloat16)
    dtype = torch.float32 if name in ("int8dq", "float8dq") else torch.bfloat16
    product(x, linear, dtype, empty(tokens, 1) if dynamic else None)


def _every_product(name: str, tokens: int) -> None:
    for shape in shapes():
        launch_product(name, tokens, *shape)


def launch_fused(
    name: str,
    kernel: str,
    *,
    model: str = MODELS[1],
    tokens: int = 1,
    kind: str = "unquantized",
) -> None:
    """One of KERNELS in a layer; `kind` is one of CACHES."""
    config = preset(model)
    dim, hidden, width = config.dim, config.intermediate_size, config.head_dim
    rows, columns = {
        "heads": (config.qkv_size, dim),
        "add": (dim, hidden),
        "gate": (hidden, dim),
    }[kernel]
    x, linear = empty(tokens, columns), packed(name, rows, columns)
    counter = empty(rows, dtype=torch.int32)
    peaks = empty(16, dtype=torch.int32) if linear.dynamic else None
    norm = fused.Norm(weight=empty(dim), eps=1e-5)
    if kernel == "heads":
        angles = empty(tokens, width // 2, dtype=torch.float32)
        positions = empty(tokens, dtype=torch.int64)
        place, cache = ((angles, angles), positions), _cache(config, 300, kind)
        heads = partial(fused.project_heads, norm=norm, place=place, cache=cache)
        heads(x.unsqueeze(0), linear, counter, peaks_in=peaks)
    elif kernel == "add":
        left = fused.Peaks(read=peaks, written=peaks, next_norm_weight=empty(dim))
        fused.project(x, [linear], counter, residual=empty(tokens, dim), peaks=left)
    else:
        # Cleared are those of the next product, and of attention behind that.
        left = fused.Peaks(read=peaks, written=peaks, cleared=peaks)
        fused.project(x, [linear, linear], counter, norm=norm, peaks=left)


def _every_fused_kernel(name: str, tokens: int) -> None:
    for model, kernel in pairs(MODELS, KERNELS):
        for kind in CACHES if kernel == "heads" else ("unquantized",):
            launch_fused(name, kernel, model=model, tokens=tokens, kind=kind)


def launch_attention(model: str, dtype: str, kind: str) -> None:
    """For one sequence, with the output projection in bfloat16 to prefetch."""
    config, activations = preset(model), getattr(torch, dtype)
    split_attention(
        empty(1, 1, config.n_heads, config.head_dim, dtype=activations),
        _cache(config, POSITIONS, kind, activations),
        empty(config.n_heads, dtype=torch.int32),
        empty(1, dtype=torch.int64),
        prefetch=empty(config.dim, config.dim),
    )


def _cache(
    config: ModelConfig, size: int, kind: str, dtype: torch.dtype = torch.bfloat16
) -> CachedTensors:
    shape, codes = (1, config.n_kv_heads, size), CACHES[kind]
    scale = None if codes is None else empty(*shape, dtype=cache_codes.SCALE)
    values = empty(*shape, config.head_dim, dtype=codes or dtype)
    return CachedTensors(values, values, scale, scale)


def _table(
    name: str,
    headers: tuple[str, ...],
    work: Callable[..., object],
    *cells: Iterable[Any],
) -> Table:
    """With a row for every combination of the cells, with which it calls `work`.

    Registers, spilled bytes and the KB of shared memory of attention.
    """
    works = {tuple(map(str, row)): partial(work, *row) for row in pairs(*cells)}

    def draw(*key: str) -> tuple[list[str], list[str]]:
        figures, problems = [], []
        for capability in CAPABILITIES:
            launched = compiled(works[key], capability)
            spilled_bytes = max(one.spilled_bytes for one in launched)
            cell = f"{max(one.registers for one in launched)}, {spilled_bytes}"
            if name == "attention":
                cell += f", {launched[0].shared_bytes / 1024:.0f}"
            figures.append(cell)
            if spilled_bytes:
                problems.append(f"sm_{capability} spills {spilled_bytes} bytes")
        return figures, problems

    columns = (*headers, *(f"sm_{capability}" for capability in CAPABILITIES))
    where = place("kernels.md", name)
    return Table(place=where, headers=columns, keys=works, draw=draw)


_FORMAT = ("format", "tokens")
_HEADS = ("heads of", "dtype", "cache")
TABLES = {
    "attention": _table("attention", _HEADS, launch_attention, MODELS, DTYPES, CACHES),
    "fused": _table("fused", _FORMAT, _every_fused_kernel, FUSED, TOKENS[:2]),
    "products": _table("kernels", _FORMAT, _every_product, PRODUCTS, TOKENS),
}


def main() -> str | None:
    """Compile what was named, or everything; returns which kernels spill."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.kernel_resources",
        description="Compile every Triton kernel and write the tables of"
        " docs/kernels.md. Rows that were not compiled stay as they are.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        choices=["attention", "fused", *FORMATS],
        help=f"attention, fused, or a format: {', '.join(FORMATS)}; a format after"
        " fused is that of the fused kernels (default: everything)",
    )
    names = parser.parse_args().names
    formats = [name for name in names if name in FORMATS]
    wanted = [name for name in TABLES if name in names or not names]
    if formats and "fused" not in names:
        wanted.append("products")
    spills = []
    for name in wanted:
        table = TABLES[name]
        spills += table.compute(() if name == "attention" else formats, write=True)
    return "\n".join(spills) or None


if __name__ == "__main__":
    sys.exit(main())

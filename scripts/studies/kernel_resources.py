"""The registers that each Triton kernel takes: the tables of docs/kernels.md.

Compiles every Triton kernel that Llama-2-7B and Llama-3-8B launch: those of the
products, of a fused layer and of attention, with bfloat16 activations but where a row
names others, for each architecture; from sm_90 on with dependent launches. Needs Triton
and no GPU, and says nothing of speed.
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import product as pairs
from typing import Any

import torch
from torch import Tensor

from llama_perf.kernels.triton import launch_fused as fused
from llama_perf.kernels.triton import launch_persistent as persistent
from llama_perf.kernels.triton.launch_attention import split_attention
from llama_perf.llama.attention import KINDS, KVCache
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.presets import preset
from llama_perf.quantize.autoquant import timing
from llama_perf.rows.schemes import UNQUANTIZED
from scripts.doc_tables.document import Place, Table
from scripts.studies.compile_only import (
    MULTIPROCESSORS,
    Compiled,
    LaunchingOperators,
    compiled,
)
from scripts.studies.product_times import shapes
from scripts.studies.sass import disassemble, loops

CAPABILITIES = (80, 90, 100)
MODELS = ("Llama-2-7b-chat-hf", "Meta-Llama-3-8B")
# A step of decoding, the published table's prompt, and a prompt on tensor cores.
TOKENS = (1, 6, 64)
POSITIONS = 131072
KERNELS = ("qkv", "output", "gate", "down", "head")
"""The fused products of a step, by their names in `product_times`."""
DTYPES = ("bfloat16", "float16", "float32")
CACHES = ("unquantized", *KINDS)
PRODUCTS = ["int8wo", "int8dq", "int4wo-64", "uintx-4-64", "uintx-2-8", "uintx-3-64"]
PRODUCTS += ["fp6", "float8wo", "float8dq", "sparse-marlin"]
FUSED = ["bfloat16", *(name for name in PRODUCTS if name != "float8dq")]
"""float8dq has no fused kernel."""
# Of formats that are no scheme's name; both of float8dq are multiplied alike.
_SCHEMES = {"bfloat16": UNQUANTIZED, "float8dq": "float8dq-row"}
_META = torch.device("meta")
_product = partial(timing.Product, dtype=torch.bfloat16)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without values."""
    return torch.empty(shape, dtype=dtype, device=_META)


def launch_product(name: str, tokens: int, rows: int, columns: int) -> None:
    """The product of a linear whose weight has a format of PRODUCTS."""
    product = _product(tokens=tokens, rows=rows, columns=columns)
    with LaunchingOperators():  # type: ignore[no-untyped-call]  # torch's has no types
        timing.launch_once(product, _SCHEMES.get(name, name))


def _every_product(name: str, tokens: int) -> None:
    for model in MODELS:
        for shape in shapes(preset(model)).values():
            launch_product(name, tokens, *shape)


def launch_fused(
    name: str,
    kernel: str,
    *,
    model: str = MODELS[1],
    tokens: int = 1,
    kind: str = "unquantized",
) -> None:
    """One of KERNELS; `kind` is one of CACHES."""
    config = preset(model)
    dim, width = config.dim, config.head_dim
    rows, columns = shapes(config)[kernel]
    x = empty(tokens, columns)
    product = _product(tokens=tokens, rows=rows, columns=columns, how="fused")
    (linear,), *_ = timing.weight_copies(_SCHEMES.get(name, name), product, _META)
    counter = empty(rows, dtype=torch.int32)
    rounded = linear.on_tensor_cores(x.dtype)
    peaks = empty(16, dtype=torch.int32) if rounded else None
    norm = fused.Norm(weight=empty(dim), eps=1e-5)
    if kernel == "qkv":
        angles = empty(tokens, width // 2, dtype=torch.float32)
        positions = empty(tokens, dtype=torch.int64)
        fused.project_heads(
            x.unsqueeze(0),
            linear,
            counter,
            heads=fused.Heads(norm=norm),
            place=((angles, angles), positions),
            cache=_cache(config, 300, kind).tensors,
            peaks_in=peaks,
        )
    elif kernel == "head":
        left = fused.Peaks(read=peaks)
        fused.project(x, [linear], counter, norm=norm, peaks=left)
    elif kernel in ("output", "down"):
        left = fused.Peaks(read=peaks, written=peaks, next_norm_weight=empty(dim))
        fused.project(x, [linear], counter, residual=empty(tokens, dim), peaks=left)
    else:
        # Cleared are those of the next product, and of attention behind that.
        left = fused.Peaks(read=peaks, written=peaks, cleared=peaks)
        fused.project(x, [linear, linear], counter, norm=norm, peaks=left)


def launch_layers(name: str, model: str) -> None:
    """All layers of a step as one kernel: two layers, since it loops over them."""
    config, tokens = preset(model), 1
    weights = []
    for kernel in ("qkv", "output", "gate", "gate", "down"):
        rows, columns = shapes(config)[kernel]
        product = _product(tokens=tokens, rows=rows, columns=columns, how="fused")
        (linear,), *_ = timing.weight_copies(_SCHEMES.get(name, name), product, _META)
        weights.append(linear)
    wqkv, output, gate, up, down = weights
    layer = persistent.Layer(
        weights=(wqkv, output, gate, up, down),
        norms=(empty(config.dim), empty(config.dim), empty(config.dim)),
        cache=_cache(config, 300, "unquantized").tensors,
    )
    angle = empty(tokens, config.head_dim // 2, dtype=torch.float32)
    position = empty(tokens, dtype=torch.int64)
    persistent.LayersKernel([layer, layer], eps=1e-5)(
        empty(tokens, 1, config.dim),
        (angle, angle),
        position,
        position,
        empty(config.intermediate_size, dtype=torch.int32),
        empty(4, 8, dtype=torch.int32),
    )


def _every_fused_kernel(name: str, tokens: int) -> None:
    for model, kernel in pairs(MODELS, KERNELS):
        for kind in CACHES if kernel == "qkv" else ("unquantized",):
            launch_fused(name, kernel, model=model, tokens=tokens, kind=kind)


def launch_attention(model: str, dtype: str, kind: str) -> None:
    """For one sequence, with the output projection in bfloat16 to prefetch."""
    config, activations = preset(model), getattr(torch, dtype)
    cache = _cache(config, POSITIONS, kind, activations)
    split_attention(
        empty(1, 1, config.n_heads, config.head_dim, dtype=activations),
        cache.tensors,
        cache.split_counter,
        empty(1, dtype=torch.int64),
        prefetch=empty(config.dim, config.dim),
    )


def _cache(
    config: ModelConfig, size: int, kind: str, dtype: torch.dtype = torch.bfloat16
) -> KVCache:
    return KVCache(
        config,
        batch_size=1,
        cache_size=size,
        dtype=dtype,
        device=_META,
        kind=None if kind == "unquantized" else kind,
    )


def spills_in_loops(made: Compiled) -> int:
    """Local loads and stores of the loops in which weights or the cache are copied."""
    spills = 0
    for loop in loops(disassemble(made.cubin)):
        names = loop.instructions
        # The loops around them have the sums of all programs too.
        outer = any(name.startswith(("ATOM", "RED")) for name in names)
        if loop.asynchronous and not outer:
            spills += sum(name.startswith(("LDL", "STL")) for name in names)
    return spills


def _table(
    name: str,
    headers: tuple[str, ...],
    work: Callable[..., object],
    *cells: Iterable[Any],
) -> Table:
    """With a row for every combination of the cells, with which it calls `work`.

    Registers and spilled bytes; of attention and of all layers the KB of shared memory;
    of all layers the programs of a processor, which run at once, and `spills_in_loops`.
    """
    works = {tuple(map(str, row)): partial(work, *row) for row in pairs(*cells)}

    def draw(*key: str) -> tuple[list[str], list[str]]:
        figures, problems = [], []
        for capability in CAPABILITIES:
            launched = compiled(works[key], capability)
            spilled_bytes = max(one.spilled_bytes for one in launched)
            cell = f"{max(one.registers for one in launched)}, {spilled_bytes}"
            if name in ("attention", "persistent"):
                cell += f", {launched[0].shared_bytes / 1024:.0f}"
            if name == "persistent":
                cell += f", {launched[0].options['grid'][0] // MULTIPROCESSORS}"
                cell += f", {spills_in_loops(launched[0])}"
            figures.append(cell)
            if spilled_bytes:
                problems.append(f"sm_{capability} spills {spilled_bytes} bytes")
        return figures, problems

    columns = (*headers, *(f"sm_{capability}" for capability in CAPABILITIES))
    place = Place("kernels.md", name)
    return Table(place=place, headers=columns, keys=works, draw=draw)


_FORMAT = ("format", "tokens")
_HEADS = ("heads of", "dtype", "cache")
OF_PRODUCTS = _table("kernels", _FORMAT, _every_product, PRODUCTS, TOKENS)
OF_FUSED = _table("fused", _FORMAT, _every_fused_kernel, FUSED, TOKENS[:2])
OF_ATTENTION = _table("attention", _HEADS, launch_attention, MODELS, DTYPES, CACHES)
OF_LAYERS = _table("persistent", ("format", "model"), launch_layers, FUSED, MODELS)

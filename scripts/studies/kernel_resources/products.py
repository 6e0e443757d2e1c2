"""Compile the Triton kernels of the products: the first table of docs/kernels.md.

Each kernel as it would be launched at every shape of Llama-2-7B and Llama-3-8B, with
bfloat16 activations, for each architecture. Says nothing of speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llama_perf.kernels.packing import sparse_values, words
from llama_perf.kernels.triton.codes import FLOAT8, FP6, INT8, UNSIGNED
from llama_perf.kernels.triton.int8_dynamic import few_tokens_int8, many_tokens_int8
from llama_perf.kernels.triton.launch_products import (
    FEW,
    codes_launch,
    few_launch,
    many_launch,
    sparse_launch,
)
from llama_perf.kernels.triton.sparse import few_tokens_sparse, many_tokens_sparse
from llama_perf.kernels.triton.weight_only import few_tokens, many_tokens
from llama_perf.llama.presets import preset
from scripts.doc_tables.document import place
from scripts.studies.kernel_resources.resources import (
    MODELS,
    Kernel,
    Resources,
    Row,
    compile_kernel,
    document_formats,
)

PLACE = place("kernels.md", "kernels")
# A step of decoding, the published table's prompt, and a prompt on tensor cores.
TOKENS = (1, 6, 64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A weight format as the kernels' constants name it.

    `wide`: its products are in float32.
    """

    name: str
    bits: int
    decode: int = UNSIGNED.value
    group: int = 0
    zero: int = 0
    wide: bool = False
    dynamic: bool = False
    sparse: bool = False


VARIANTS = (
    Variant(name="int8wo", bits=8, decode=INT8.value),
    Variant(name="int8dq", bits=8, dynamic=True),
    Variant(name="int4wo-64", bits=4, group=64, zero=3),
    Variant(name="uintx-4-64", bits=4, group=64, zero=2),
    Variant(name="uintx-4-64 reference", bits=4, group=64, zero=1),
    Variant(name="uintx-2-8", bits=2, group=8, zero=2),
    Variant(name="uintx-3-64", bits=3, group=64, zero=2),
    Variant(name="fp6", bits=6, decode=FP6.value),
    Variant(name="float8wo", bits=8, decode=FLOAT8.value),
    Variant(name="float8dq", bits=8, decode=FLOAT8.value, wide=True),
    Variant(name="sparse-marlin", bits=6, sparse=True),
)
ORDER: list[Row] = [(variant.name, tokens) for variant in VARIANTS for tokens in TOKENS]
"""The rows of the table."""


def shapes() -> list[tuple[int, int]]:
    """(N, K) of every linear of the two models, once each."""
    sizes = set()
    for model in MODELS:
        config = preset(model)
        dim, hidden = config.dim, config.intermediate_size
        sizes |= {(config.qkv_size, dim), (dim, dim), (hidden, dim), (dim, hidden)}
        sizes.add((config.vocab_size, dim))
    return sorted(sizes)


def compile_one(
    variant: Variant, tokens: int, rows: int, columns: int, capability: int
) -> Resources:
    """Compile one launch for one architecture."""
    return compile_kernel(_kernel(variant, tokens, rows, columns), capability)


def _kernel(variant: Variant, tokens: int, rows: int, columns: int) -> Kernel:
    few = tokens <= FEW
    constants: dict[str, Any] = {"K": columns}
    if variant.dynamic:
        function = few_tokens_int8 if few else many_tokens_int8
        launch = (
            few_launch(tokens, rows, columns)
            if few
            else many_launch(tokens, rows, columns, min_units=32)
        )
        if few:
            constants["ASM"] = True
        pointers = {"x": "*i32" if few else "*i8", "codes": "*i32", "out": "*i32"}
    else:
        values = sparse_values(columns) if variant.sparse else columns
        constants["WORDS"] = words(variant.bits, values)
        if not few:
            constants["WIDE"] = False
        grouped = variant.group or variant.sparse
        pointers = {
            "x": "*bf16",
            "codes": "*i32",
            "scale": "*fp16" if grouped else "*fp32",
        }
        if variant.sparse:
            function = few_tokens_sparse if few else many_tokens_sparse
            launch = sparse_launch(tokens, rows, columns)
        else:
            function = few_tokens if few else many_tokens
            launch = codes_launch(tokens, rows, columns, decode=variant.decode)
            zeros = {0: "*fp32", 1: "*i32", 2: "*i32", 3: "*fp16"}
            pointers["zero"] = zeros[variant.zero]
            constants["BITS"] = variant.bits
            constants["DECODE"] = variant.decode
            constants["GROUP"] = variant.group
            constants["ZERO"] = variant.zero
        partial_sums = few and launch.splits > 1
        pointers["out"] = "*fp32" if partial_sums or variant.wide else "*bf16"
    return Kernel(
        function=function,
        pointers=pointers,
        # The models' N are multiples of 16.
        sizes={"M": False, "N": True},
        constants=constants | launch.constants,
        warps=launch.warps,
        stages=launch.stages,
    )


def compile_all(variant: Variant, tokens: int, capability: int) -> Iterator[Resources]:
    """The launches at every shape."""
    for rows, columns in shapes():
        yield compile_one(variant, tokens, rows, columns, capability)


def main(names: Sequence[str]) -> int:
    """Write the rows of the formats named, keep the others; how many cells spill."""
    compilers: dict[Row, Callable[[int], Iterator[Resources]]] = {
        (variant.name, tokens): partial(compile_all, variant, tokens)
        for variant in VARIANTS
        for tokens in TOKENS
        if variant.name in names
    }
    return document_formats(PLACE, ORDER, compilers)

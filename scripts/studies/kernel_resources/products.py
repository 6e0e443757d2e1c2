"""Compile the Triton kernels without a card; registers and spills into docs/kernels.md.

Each kernel as it would be launched at every shape of Llama-2-7B and Llama-3-8B, with
bfloat16 activations, for each architecture. Says nothing of speed.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from tabulate import tabulate
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from llama_perf.kernels.packing import words
from llama_perf.kernels.sparse import kept
from llama_perf.kernels.triton.codes import FLOAT8, FP6, INT8, UNSIGNED
from llama_perf.kernels.triton.int8_dynamic import few_tokens_int8, many_tokens_int8
from llama_perf.kernels.triton.launch_products import (
    FEW,
    Launch,
    codes_launch,
    few_launch,
    many_launch,
    sparse_launch,
)
from llama_perf.kernels.triton.sparse import few_tokens_sparse, many_tokens_sparse
from llama_perf.kernels.triton.weight_only import few_tokens, many_tokens
from llama_perf.llama.presets import preset
from scripts.doc_tables.document import place, replace_between, rows_between

PLACE = place("kernels.md", "kernels")
CAPABILITIES = (80, 90, 100)
# A step of decoding, the published table's prompt, and a prompt on tensor cores.
TOKENS = (1, 6, 64)
MODELS = ("Llama-2-7b-chat-hf", "Meta-Llama-3-8B")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one thread of a kernel takes, and what was compiled."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


def shapes() -> list[tuple[int, int]]:
    """(N, K) of every linear of the two models, once each."""
    found = set()
    for model in MODELS:
        config = preset(model)
        dim, hidden = config.dim, config.intermediate_size
        found |= {(config.qkv_size, dim), (dim, dim), (hidden, dim), (dim, hidden)}
        found.add((config.vocab_size, dim))
    return sorted(found)


def compile_one(
    variant: Variant, tokens: int, rows: int, columns: int, capability: int
) -> Resources:
    """Compile one launch for one architecture."""
    kernel, launch, constants, pointers = _launch(variant, tokens, rows, columns)
    return compile_launch(
        kernel,
        pointers=pointers,
        # The models' N are multiples of 16.
        sizes={"M": False, "N": True},
        constants=constants | launch.constants,
        warps=launch.warps,
        stages=launch.stages,
        capability=capability,
    )


def compile_launch(
    kernel: Any,
    *,
    pointers: dict[str, str],
    sizes: dict[str, bool],
    constants: dict[str, Any],
    warps: int,
    stages: int,
    capability: int,
    floats: Sequence[str] = (),
    dependent: bool = False,
) -> Resources:
    """Compile `kernel`; `sizes` are its int32, each with whether 16 divides it.

    The arguments are pointers, `floats` and sizes, in this order. `dependent`: it may
    start before the kernel in front of it ends.
    """
    signature = {**pointers, **dict.fromkeys(floats, "fp32")}
    signature |= dict.fromkeys(sizes, "i32")
    signature |= dict.fromkeys(constants, "constexpr")
    # Torch's allocations start at multiples of 16 bytes.
    aligned = [*pointers, *(name for name, divided in sizes.items() if divided)]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=constants,
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(signature)
            if name in aligned
        },
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages, "launch_pdl": dependent},
    )
    registers, spilled = _assembled(compiled.asm["ptx"], capability)
    return Resources(
        registers=registers,
        spilled_bytes=spilled,
        shared_bytes=int(compiled.metadata.shared),
    )


def _launch(
    variant: Variant, tokens: int, rows: int, columns: int
) -> tuple[Any, Launch, dict[str, Any], dict[str, str]]:
    few = tokens <= FEW
    if variant.dynamic:
        pointers = {"x": "*i32" if few else "*i8", "codes": "*i32", "out": "*i32"}
        if few:
            launch = few_launch(tokens, rows, columns)
            return few_tokens_int8, launch, {"K": columns, "ASM": True}, pointers
        launch = many_launch(tokens, rows, columns, least_u=32)
        return many_tokens_int8, launch, {"K": columns}, pointers
    if variant.sparse:
        return _sparse_launch(tokens, rows, columns)
    launch = codes_launch(tokens, rows, columns, decode=variant.decode)
    constants: dict[str, Any] = {
        "K": columns,
        "WORDS": words(variant.bits, columns),
        "BITS": variant.bits,
        "DECODE": variant.decode,
        "GROUP": variant.group,
        "ZERO": variant.zero,
    }
    if not few:
        constants["WIDE"] = False
    partial = few and launch.splits > 1
    pointers = {
        "x": "*bf16",
        "codes": "*i32",
        "scale": "*fp16" if variant.group else "*fp32",
        "zero": {0: "*fp32", 1: "*i32", 2: "*i32", 3: "*fp16"}[variant.zero],
        "out": "*fp32" if partial or variant.wide else "*bf16",
    }
    return few_tokens if few else many_tokens, launch, constants, pointers


def _sparse_launch(
    tokens: int, rows: int, columns: int
) -> tuple[Any, Launch, dict[str, Any], dict[str, str]]:
    launch, few = sparse_launch(tokens, rows, columns), tokens <= FEW
    constants: dict[str, Any] = {"K": columns, "WORDS": words(6, kept(columns))}
    partial = few and launch.splits > 1
    pointers = {
        "x": "*bf16",
        "codes": "*i32",
        "scale": "*fp16",
        "out": "*fp32" if partial else "*bf16",
    }
    if few:
        return few_tokens_sparse, launch, constants, pointers
    return many_tokens_sparse, launch, constants | {"WIDE": False}, pointers


def _assembled(ptx: str, capability: int) -> tuple[int, int]:
    """Registers of a kernel and the bytes it spills, by the assembler's own account."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    tool = folder / ("ptxas-blackwell" if capability >= 100 else "ptxas")
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None, "PTX without a target"
    with tempfile.NamedTemporaryFile(suffix=".ptx", mode="w") as file:
        file.write(ptx)
        file.flush()
        done = subprocess.run(
            [tool, "-v", "--gpu-name", target[1], file.name, "-o", os.devnull],
            capture_output=True,
            text=True,
            check=True,
        )
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spilled = re.search(r"(\d+) bytes spill stores", done.stderr)
    assert registers is not None, f"ptxas wrote {done.stderr!r}"
    assert spilled is not None, f"ptxas wrote {done.stderr!r}"
    return int(registers[1]), int(spilled[1])


def measure(names: Sequence[str]) -> Iterator[tuple[str, int, int, list[Resources]]]:
    """(variant, tokens, capability, what each shape takes) of the variants named."""
    for variant in VARIANTS:
        if variant.name not in names:
            continue
        for tokens in TOKENS:
            for capability in CAPABILITIES:
                taken = [
                    compile_one(variant, tokens, rows, columns, capability)
                    for rows, columns in shapes()
                ]
                yield variant.name, tokens, capability, taken


def documented() -> dict[tuple[str, int], list[str]]:
    """The cells of docs/kernels.md by variant and tokens."""
    rows = rows_between(*PLACE)
    return {(row[0], int(row[1])): row[2:] for row in rows}


def main(names: Sequence[str]) -> int:
    """Write the rows of the variants named, keep the others; 1 if a kernel spills."""
    kept = documented()
    cells: dict[tuple[str, int], list[str]] = {
        (variant.name, tokens): []
        if variant.name in names
        else kept[variant.name, tokens]
        for variant in VARIANTS
        for tokens in TOKENS
    }
    spills = []
    for name, tokens, capability, taken in measure(names):
        print(f"{name}, {tokens} tokens, sm_{capability}", flush=True)
        registers = max(each.registers for each in taken)
        spilled = max(each.spilled_bytes for each in taken)
        cells[name, tokens].append(f"{registers}, {spilled}")
        if spilled:
            spills.append(f"{name}, {tokens} tokens, sm_{capability}: {spilled} bytes")
    headers = ["format", "tokens", *(f"sm_{each}" for each in CAPABILITIES)]
    rows = [(name, tokens, *found) for (name, tokens), found in cells.items()]
    table = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
    replace_between(*PLACE, table)
    print(table)
    print("\n".join(f"spilled: {each}" for each in spills))
    return 1 if spills else 0

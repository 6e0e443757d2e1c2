"""Compile a Triton kernel without a GPU: its registers, shared memory and spills.

Writes the tables of docs/kernels.md. Knows no kernel and no launch, and nothing of
speed.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from tabulate import tabulate
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from llama_perf.kernels import cache_codes
from llama_perf.kernels.triton.dependent_launch import EARLY_SINCE
from scripts.doc_tables.document import Place, replace_between, rows_between

CAPABILITIES = (80, 90, 100)
MODELS = ("Llama-2-7b-chat-hf", "Meta-Llama-3-8B")
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    cache_codes.INT8: "*i8",
    cache_codes.FP8: "*u8",
}
Row = tuple[str, int]
"""A format and a number of tokens, which name a row of a table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """A kernel as it would be launched: its arguments, in this order, and its options.

    `pointers` has each pointer's type, `floats` the names of float32 arguments, `sizes`
    those of int32 with whether 16 divides them. `dependent`: the kernel may start
    before the one in front of it ends.
    """

    function: Any
    pointers: dict[str, str]
    floats: Sequence[str] = ()
    sizes: dict[str, bool]
    constants: dict[str, Any]
    warps: int
    stages: int
    dependent: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one thread of a kernel takes; the shared memory of a program."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


def starts_early(capability: int) -> bool:
    """Whether kernels of an architecture, such as 90, use dependent launch."""
    return divmod(capability, 10) >= EARLY_SINCE


def compile_kernel(kernel: Kernel, capability: int) -> Resources:
    """Compile `kernel` for sm_`capability`."""
    signature = {**kernel.pointers, **dict.fromkeys(kernel.floats, "fp32")}
    signature |= dict.fromkeys(kernel.sizes, "i32")
    signature |= dict.fromkeys(kernel.constants, "constexpr")
    # Torch's allocations start at multiples of 16 bytes.
    aligned = {
        *kernel.pointers,
        *(name for name, divided in kernel.sizes.items() if divided),
    }
    source = ASTSource(
        fn=kernel.function,
        signature=signature,
        constexprs=kernel.constants,
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(signature)
            if name in aligned
        },
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={
            "num_warps": kernel.warps,
            "num_stages": kernel.stages,
            "launch_pdl": kernel.dependent,
        },
    )
    registers, spilled_bytes = assemble(compiled.asm["ptx"], capability)
    return Resources(
        registers=registers,
        spilled_bytes=spilled_bytes,
        shared_bytes=int(compiled.metadata.shared),
    )


def assemble(ptx: str, capability: int) -> tuple[int, int]:
    """Registers of a kernel and the bytes it spills, as the assembler reports them."""
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


def documented(table: Place) -> dict[Row, list[str]]:
    """The cells of a table of docs/kernels.md by format and tokens."""
    return {(row[0], int(row[1])): row[2:] for row in rows_between(*table)}


def document_formats(
    table: Place,
    order: Sequence[Row],
    compilers: Mapping[Row, Callable[[int], Iterable[Resources]]],
) -> int:
    """Write the rows of `compilers` and keep the others; how many cells have spills.

    Each compiler takes an architecture and yields what its launches take.
    """
    cells, spills = documented(table), 0
    for (name, tokens), compile_all in compilers.items():
        cells[name, tokens] = []
        for capability in CAPABILITIES:
            launch = f"{name}, {tokens} tokens, sm_{capability}"
            print(launch, flush=True)
            launches = list(compile_all(capability))
            registers = max(launch.registers for launch in launches)
            spilled_bytes = max(launch.spilled_bytes for launch in launches)
            cells[name, tokens].append(f"{registers}, {spilled_bytes}")
            if spilled_bytes:
                print(f"spilled: {launch}: {spilled_bytes} bytes")
                spills += 1
    rows = [(*row, *cells[row]) for row in order if row in cells]
    write_table(table, ["format", "tokens"], rows)
    return spills


def write_table(
    table: Place, headers: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """Put rows that end with a cell for each architecture into docs/kernels.md."""
    columns = [*headers, *(f"sm_{capability}" for capability in CAPABILITIES)]
    text = tabulate(rows, headers=columns, tablefmt="github", disable_numparse=True)
    replace_between(*table, text)
    print(text)

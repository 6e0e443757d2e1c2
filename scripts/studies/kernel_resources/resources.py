"""Compile what is launched without a GPU: registers, shared memory and spills.

Knows no kernel and no table, and nothing of speed.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction, driver

from scripts.studies.kernel_resources.compile_only import compiling_driver

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one thread of a kernel takes; the shared memory of a program."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


def compiled(work: Callable[[], object], capability: int) -> list[Resources]:
    """Those of all that `work` launches, on the meta device, for sm_`capability`."""
    launched: list[Resources] = []

    def compile_one(kernel: Any, *arguments: Any, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in list(kwargs) if name.islower()}
        del options["grid"], options["warmup"]
        launched.append(_compile(kernel, arguments, kwargs, options, capability))

    with (
        mock.patch.object(JITFunction, "run", compile_one),
        mock.patch.object(driver, "_active", compiling_driver(capability, 132, [])),
    ):
        work()
    return launched


def _compile(
    kernel: Any,
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
    options: dict[str, Any],
    capability: int,
) -> Resources:
    names, types, attributes = kernel.arg_names, {}, {}
    for index, (name, value) in enumerate(zip(names, arguments, strict=False)):
        if isinstance(value, Tensor):
            types[name] = POINTERS[value.dtype]
            divided = True  # Torch's allocations start at multiples of 16 bytes.
        else:
            types[name] = "fp32" if isinstance(value, float) else "i32"
            # A prompt may have any number of tokens, M.
            divided = name != "M" and value % 16 == 0 and isinstance(value, int)
        if divided:
            attributes[index,] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=kernel,
        signature=types | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        attrs=attributes,
    )
    target = GPUTarget("cuda", capability, 32)
    made = triton.compile(source, target=target, options=options)
    registers, spilled_bytes = assemble(made.asm["ptx"], capability)
    return Resources(
        registers=registers,
        spilled_bytes=spilled_bytes,
        shared_bytes=int(made.metadata.shared),
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
        command = [tool, "-v", "--gpu-name", target[1], file.name, "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spilled = re.search(r"(\d+) bytes spill stores", done.stderr)
    assert registers is not None, f"ptxas wrote {done.stderr!r}"
    assert spilled is not None, f"ptxas wrote {done.stderr!r}"
    return int(registers[1]), int(spilled[1])

"""Triton kernels compiled for a card, without one: launches, registers and spills.

Launches go through Triton's real JIT on a machine without a card: what a kernel is
given is specialised, bound and compiled as on the card. Wrong arguments fail here,
launches can be counted, and `TRITON_CACHE_DIR` is filled with what that card would
load, where the Triton wheel and the Python are the same. Tensors may be on the meta
device, which makes a model of seven billion parameters cost nothing. Nothing is
computed.
"""

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from packaging.version import Version
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from llama_perf.kernels import attention, products

# Of the largest card of each architecture; launches that ask for more are refused.
_SHARED_BYTES = {80: 166912, 90: 232448, 100: 232448}
# Triton's own, without which the assembler gives other figures.
_PTXAS_OPTIONS = (
    ("--regAllocOptLevel=2",) if Version(triton.__version__) >= Version("3.7") else ()
)
MULTIPROCESSORS = 132
"""Those of the card, where none are named."""
# Parameters of kernels, of which Triton would compile 1 and multiples of 16 apart.
_TOKENS = ("M", "LENGTH")


@dataclass(frozen=True, slots=True)
class Launched:
    """A launch that was compiled.

    `dependent`: by programmatic dependent launch. `together`: a cooperative one.
    """

    kernel: str
    grid: tuple[int, ...]
    dependent: bool
    together: bool


def compile_only(
    capability: int,
    *,
    multiprocessors: int = MULTIPROCESSORS,
    launches: list[Launched] | None = None,
) -> list[Launched]:
    """Make Triton compile for sm_`capability`, such as 90; the list that launches fill.

    From now on, for all of this process: a kernel is compiled once a process, so no
    two targets can be used in one, nor two lists.
    """
    launches = [] if launches is None else launches
    driver.set_active(compiling_driver(capability, multiprocessors, launches))
    return launches


_ON_GPU = {
    "llama_perf::packed_product": products.on_gpu,
    "llama_perf::decode_attention": attention.decode_on_gpu,
}


class LaunchingOperators(TorchDispatchMode):
    """Within it this project's operators launch for meta tensors as for a card's."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        if func.namespace == "llama_perf":
            # torch has no public way to ask an operator for a device's function.
            name = func._overloadpacket._qualified_op_name
            own = torch._library.custom_ops.OPDEFS.get(name)
            func = _ON_GPU.get(name) or (own and own._backend_fns.get("cuda")) or func
        return func(*args, **(kwargs or {}))


def compiling_driver(
    capability: int, multiprocessors: int, launches: list[Launched]
) -> SimpleNamespace:
    """What Triton asks of a driver, as `triton.backends.driver.GPUDriver` has it."""
    properties = {
        "max_shared_mem": _SHARED_BYTES[capability],
        "multiprocessor_count": multiprocessors,
        "max_num_regs": 65536,
        "warpSize": 32,
    }

    def launcher(src: Any, metadata: Any) -> Callable[..., None]:
        def note(*arguments: Any, **_options: Any) -> None:
            kernel = getattr(src.fn, "__name__", src.name)
            launched = Launched(
                kernel,
                tuple(arguments[:3]),
                dependent=bool(metadata.launch_pdl),
                together=bool(metadata.launch_cooperative_grid),
            )
            launches.append(launched)

        return note

    return SimpleNamespace(
        launcher_cls=launcher,
        utils=SimpleNamespace(
            # Module, function, registers, spills, maximum of threads.
            load_binary=lambda *_binary: (1, 1, 0, 0, 1024),
            get_device_properties=lambda _device: properties,
        ),
        # Triton compiles a kernel once for each device: one for each architecture.
        get_current_device=lambda: capability,
        get_current_stream=lambda _device: 0,
        get_device_capability=lambda _device=0: divmod(capability, 10),
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_active_torch_device=lambda: torch.device("meta"),
        set_current_device=lambda _device: None,
        map_python_to_cpp_type=str,
    )


class Compiled(NamedTuple):
    """What one thread of a kernel takes; its program, its launch and its code.

    `options` has the constants, `grid`, `num_warps` and `num_stages`; `ttgir` is
    Triton's last form, `ptx` what the assembler made `cubin` of.
    """

    registers: int
    spilled_bytes: int
    shared_bytes: int
    options: dict[str, Any]
    ttgir: str
    ptx: str
    cubin: bytes


def compiled(work: Callable[[], object], capability: int) -> list[Compiled]:
    """All that `work` launches, on the meta device, for sm_`capability`.

    Each kernel is the one for any number of tokens.
    """
    launched: list[tuple[Any, dict[str, Any]]] = []
    run = JITFunction.run

    def run_and_keep(kernel: Any, *arguments: Any, **options: Any) -> Any:
        for parameter in kernel.params:
            parameter.do_not_specialize |= parameter.name in _TOKENS
        made = run(kernel, *arguments, **options)
        if not options["warmup"]:
            launched.append((made, options))
        return made

    with (
        mock.patch.object(JITFunction, "run", run_and_keep),
        mock.patch.object(
            driver, "_active", compiling_driver(capability, MULTIPROCESSORS, [])
        ),
    ):
        work()
    return [
        Compiled(
            *assemble(made.asm["ptx"], capability),
            made.metadata.shared,
            options,
            *(made.asm[name] for name in ("ttgir", "ptx", "cubin")),
        )
        for made, options in launched
    ]


def assemble(ptx: str, capability: int) -> tuple[int, int]:
    """Registers of a kernel and the bytes it spills, as the assembler reports them."""
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None, "PTX without a target"
    command = [ptxas(capability), "-v", *_PTXAS_OPTIONS, "--gpu-name", target[1]]
    command += ["/dev/stdin", "-o", os.devnull]
    done = subprocess.run(
        command, input=ptx, capture_output=True, text=True, check=True
    )
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spilled = re.search(r"(\d+) bytes spill stores", done.stderr)
    assert registers is not None, f"ptxas wrote {done.stderr!r}"
    assert spilled is not None, f"ptxas wrote {done.stderr!r}"
    return int(registers[1]), int(spilled[1])


def ptxas(capability: int) -> Path:
    """The assembler of the Triton wheel for sm_`capability`."""
    name = "ptxas-blackwell" if capability >= 100 else "ptxas"
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name

"""How a Triton kernel is started, what several need, and an empty one."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from packaging.version import Version
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.runtime import driver

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
# The interpreter before Triton 3.7 needs the bound of a loop to be known.
KNOWN_BOUNDS = tl.constexpr(
    INTERPRETED.value and Version(triton.__version__) < Version("3.7")
)
# The first architecture where a kernel may start before the one in front of it ends.
EARLY_SINCE = (9, 0)


def may_start_early(device: torch.device) -> bool:
    """Whether a kernel on `device` may start before the one in front of it ends."""
    return device.type != "cpu" and capability() >= EARLY_SINCE


def capability() -> tuple[int, int]:
    """That of the GPU in use, (9, 0) where there is none."""
    try:
        known: tuple[int, int] = driver.active.get_device_capability()
    except RuntimeError:
        # In the interpreter, or to compile ahead of time.
        return 9, 0
    return known


@cache
def multiprocessors() -> int:
    """Multiprocessors of the GPU in use; of the largest Hopper where there is none."""
    try:
        return int(_properties()["multiprocessor_count"])
    except RuntimeError:
        # In the interpreter, or to compile ahead of time.
        return 132


def _properties() -> dict[str, int]:
    active = driver.active
    found: dict[str, int] = active.utils.get_device_properties(
        active.get_current_device()
    )
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A kernel's grid, its constants, its warps and the stages of its pipeline.

    `registers`: the most that a thread may have, where the compiler would take more.
    `together`: all programs run at once, or the launch fails.
    """

    grid: tuple[int, ...]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 2
    registers: int | None = None
    together: bool = False

    @property
    def splits(self) -> int:
        """Programs along the second axis: of few tokens, parts of K to be summed."""
        return self.grid[1]


def run(
    kernel: Any, launch: Launch, arguments: tuple[Any, ...], **constants: Any
) -> None:
    """Start `kernel`.

    One that takes DEPENDENT starts before the one in front of it ends, where the device
    of the first argument can do that. One that takes STAGES gets those of the launch.
    """
    options = _options(kernel, launch, arguments[0].device)
    kernel[launch.grid](*arguments, **constants, **options)


def programs_together(
    kernel: Any, launch: Launch, arguments: tuple[Any, ...], **constants: Any
) -> int:
    """How many programs fit the card at once, at most those of the grid.

    The launch says how many registers a thread has. The kernel is compiled, not run.
    """
    options = _options(kernel, launch, arguments[0].device)
    compiled = kernel.warmup(*arguments, grid=launch.grid, **constants, **options)
    # A processor has one KB more than a program may take, and each program takes one.
    most = _properties()["max_shared_mem"] + 1024
    fitting = most // (int(compiled.metadata.shared) + 1024)
    return int(min(fitting * multiprocessors(), launch.grid[0]))


def _options(kernel: Any, launch: Launch, device: torch.device) -> dict[str, Any]:
    options = launch.constants | {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
    }
    if "STAGES" in kernel.arg_names:
        options["STAGES"] = launch.stages
    if "DEPENDENT" in kernel.arg_names:
        options["DEPENDENT"] = may_start_early(device)
        if options["DEPENDENT"]:
            options["launch_pdl"] = True
    if launch.registers is not None:
        options["maxnreg"] = launch.registers
    if launch.together:
        options["launch_cooperative_grid"] = True
    return options


def aligned(x: torch.Tensor) -> torch.Tensor:
    """`x` contiguous and at a multiple of 16 bytes, as kernels load several values."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 16 else x


@triton.jit
def wait_for_input(ready, step):
    """Wait until what a program reads is written, in the first step of its loop.

    By the kernel in front, or, where `ready` has a counter and a number, by so many
    programs of this kernel, which have counted themselves.
    """
    if ready is None:
        # Nothing from the second time on.
        gdc_wait()
    else:
        tl.inline_asm_elementwise(
            _WAIT, "=r,l,r,r", [ready[0], ready[1], step],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


# One thread asks. Once the number is there it acquires the counter, which empties the
# first-level cache, and the barrier lets the others read what is not older.
_WAIT = tl.constexpr("""{
    .reg .pred first, mine, early; .reg .b32 thread, arrived;
    mov.u32 $0, 0;
    setp.eq.s32 first, $3, 0;
    @!first bra AFTER;
    mov.u32 thread, %tid.x; setp.eq.u32 mine, thread, 0;
    @!mine bra ARRIVED;
    AGAIN:
    ld.relaxed.gpu.global.b32 arrived, [$1];
    setp.lt.s32 early, arrived, $2;
    @early bra AGAIN;
    ld.acquire.gpu.global.b32 arrived, [$1];
    ARRIVED:
    bar.sync 0;
    AFTER:
}""")


@triton.jit
def count(x, DEPENDENT: tl.constexpr):
    """x[0] <- x[0] + 1, as little as a kernel can do: shows what a launch costs.

    With DEPENDENT the next kernel may start before this one ends, and waits itself, by
    programmatic dependent launch, from sm_90 on.
    """
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    tl.store(x, tl.load(x) + 1)


def launch_count(x: torch.Tensor, *, dependent: bool) -> None:
    """Launch `count` once, where `dependent` by programmatic dependent launch."""
    options = {"launch_pdl": True} if dependent else {}
    count[(1,)](x, DEPENDENT=dependent, num_warps=1, **options)


@triton.jit
def prefetch(place):
    """Ask for the line of `place` to be brought into the second-level cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [place],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def load_once(place, mask):
    """What no other program reads: it need not stay in the caches."""
    return tl.load(place, mask=mask, other=0, eviction_policy="evict_first")


@triton.jit
def load_late(place, mask):
    """What an earlier kernel writes, of 16 or 32 bits; 0 where not `mask`.

    Triton may not know that it is a load: of a loop whose loads it copies
    asynchronously it would move the first ones in front of the wait for that kernel.
    """
    if INTERPRETED:
        return tl.load(place, mask=mask, other=0)
    WIDE: tl.constexpr = place.dtype.element_ty.primitive_bitwidth == 32
    return tl.inline_asm_elementwise(
        late_load(32 if WIDE else 16),
        "=r,l,r" if WIDE else "=h,l,r",
        [place, mask.to(tl.int32)],
        dtype=place.dtype.element_ty,
        is_pure=False,
        pack=1,
    )


@triton.constexpr_function
def late_load(bits: int) -> str:
    """PTX of a load of so many bits, of 0 without it."""
    return (
        f"{{ .reg .pred p; setp.ne.b32 p, $2, 0; mov.b{bits} $0, 0;"
        f" @p ld.global.b{bits} $0, [$1]; }}"
    )


@triton.jit
def load_part(place, mask, other=0.0):
    """A part that another program stored, read past the first-level cache."""
    return tl.load(place, mask=mask, other=other, cache_modifier=".cg")


@triton.jit
def last_to_arrive(counter, count):
    """Whether all `count` programs of a group have stored their parts.

    The program that gets True resets the counter for the next launch.
    """
    # All threads store before one of them counts.
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1) == count - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def arrive(arrivals, last):
    """Count this program at `arrivals`; the last of `last` of them resets the counter.

    What the program has written is there for all that find it counted.
    """
    tl.debug_barrier()
    if tl.atomic_add(arrivals, 1, sem="release") == last - 1:
        tl.store(arrivals, 0)

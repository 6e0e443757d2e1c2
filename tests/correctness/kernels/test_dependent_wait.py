"""Dependent launch in machine code (SASS): what a fused step does before it waits.

A kernel that may start before the one in front of it ends must touch no memory that
that one still writes. So every kernel waits, and before that only prefetches weights.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from scripts.studies.compile_only import assemble
from tests.correctness.support import launches

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
if not CUOBJDUMP.exists():
    pytest.skip("no cuobjdump in Triton's package", allow_module_level=True)

KERNELS = {"start", "project_heads", "attend_in_splits", "project", "choose"}
# The wait in machine code, and letting the next kernel start.
WAIT, LET_START = "ACQBULK", "PREEXIT"
# Global memory, or any that might be; constants (LDC) and prefetches (CCTL) are none.
MEMORY = r"(LD|LDG|LDGSTS|ST|STG|ATOM|ATOMG|RED|REDG|UBLK\w+|UTMA\w+)\b"
BRANCH = r"(BRA|BRX|BRXU|JMP|JMX|CALL|RET|EXIT|BSSY|BSYNC|BREAK)\b"


def instructions(cubin: Path) -> list[str]:
    """The instructions of its kernel in their order, with their predicates."""
    done = subprocess.run(
        [CUOBJDUMP, "-sass", cubin], capture_output=True, text=True, check=True
    )
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", done.stdout)


def wrong_before_the_wait(code: list[str]) -> list[str]:
    """Instructions that must not stand before the dependent wait, or that none waits.

    Every program must reach the wait: before it nothing branches and nothing ends.
    """
    if WAIT not in code:
        return ["it does not wait"]
    before = [re.sub(r"^@!?U?P\w+\s+", "", line) for line in code[: code.index(WAIT)]]
    return [line for line in before if re.match(f"{MEMORY}|{BRANCH}", line)]


ROWS = [
    *(("Llama-2-7b-chat-hf", scheme, 90) for scheme in ("none", "int8dq")),
    *(("Meta-Llama-3-8B", scheme, 90) for scheme in ("int4wo-64", "int8dq")),
    ("Llama-2-7b-chat-hf", "int8dq", 80),
]


@pytest.mark.parametrize(("model", "scheme", "capability"), ROWS)
def test_every_kernel_of_a_fused_row_waits_before_it_touches_memory(
    model: str, scheme: str, capability: int, tmp_path: Path
) -> None:
    """From sm_90 on; before it none is launched so. None spills."""
    launches.run(model, scheme, capability, 132, 0.8, TRITON_CACHE_DIR=str(tmp_path))
    cubins = list(tmp_path.glob("*/*.cubin"))
    assert {cubin.stem for cubin in cubins} == KERNELS
    early = capability >= 90
    for cubin in cubins:
        code = instructions(cubin)
        wanted = [] if early else ["it does not wait"]
        assert wrong_before_the_wait(code) == wanted, cubin.stem
        assert (LET_START in code) == early, cubin.stem
        _, spilled_bytes = assemble(cubin.with_suffix(".ptx").read_text(), capability)
        assert spilled_bytes == 0, cubin.stem


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types.
def hasty(x, out, WHEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Loads its input before its wait, stores before it, or does not wait at all."""
    gdc_launch_dependents()
    if WHEN == "loads":
        value = tl.load(x)
        gdc_wait()
        tl.store(out, value)
    elif WHEN == "stores":
        tl.store(out, 1)
        gdc_wait()
    elif WHEN == "counts":
        tl.atomic_add(out, 1)
        gdc_wait()
    elif WHEN == "sometimes":
        if tl.program_id(0) > 0:
            gdc_wait()
            tl.store(out, 1)
    elif WHEN == "right":
        gdc_wait()
        tl.store(out, tl.load(x))
    else:
        tl.store(out, tl.load(x))


FOUND = {"loads": "LDG", "stores": "STG", "counts": "ATOM", "sometimes": "EXIT"}


@pytest.mark.parametrize(
    ("when", "wrong"), [*FOUND.items(), ("never", "it does not wait"), ("right", None)]
)
def test_a_kernel_that_does_not_wait_is_found(
    when: str, wrong: str | None, tmp_path: Path
) -> None:
    signature = {"x": "*i32", "out": "*i32", "WHEN": "constexpr"}
    source = ASTSource(fn=hasty, signature=signature, constexprs={"WHEN": when})
    options = {"launch_pdl": True}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    cubin = tmp_path / "hasty.cubin"
    cubin.write_bytes(made.asm["cubin"])
    reported = wrong_before_the_wait(instructions(cubin))
    assert wrong in " ".join(reported) if wrong else not reported, reported

"""Dependent launch in machine code: what a fused step does before it waits.

A kernel that may start before the one in front of it ends must touch no memory that
that one still writes. So every kernel waits, and before that only prefetches weights.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
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

from scripts.studies.kernel_resources.resources import assemble
from tests.correctness.support.sass import (
    CUOBJDUMP,
    LET_START,
    instructions,
    wrong_before_the_wait,
)

if not CUOBJDUMP.exists():
    pytest.skip("no cuobjdump in Triton's package", allow_module_level=True)

KERNELS = {"start", "project_heads", "attend_in_splits", "project", "choose"}
ROOT = Path(__file__).resolve().parents[3]
ROWS = (
    ("Llama-2-7b-chat-hf", "none", 90),
    ("Llama-2-7b-chat-hf", "int8dq", 90),
    ("Llama-2-7b-chat-hf", "int8dq", 80),
    ("Meta-Llama-3-8B", "int4wo-64", 90),
    ("Meta-Llama-3-8B", "int8dq", 90),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """Every kernel of a generation of a fused row."""

    capability: int
    cubins: list[Path]


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: "-".join(map(str, row)))
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Compiled:
    model, scheme, capability = request.param
    folder = tmp_path_factory.mktemp("kernels")
    words = [model, scheme, str(capability), "132", "0.8"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.correctness.support.launches", *words],
        cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cubins = sorted(folder.glob("*/*.cubin"))
    assert {cubin.stem for cubin in cubins} == KERNELS
    return Compiled(capability=capability, cubins=cubins)


def test_every_kernel_waits_before_it_touches_memory(compiled: Compiled) -> None:
    """From sm_90 on; before it none is launched so."""
    early = compiled.capability >= 90
    for cubin in compiled.cubins:
        code = instructions(cubin)
        wanted = [] if early else ["it does not wait"]
        assert wrong_before_the_wait(code) == wanted, cubin.stem
        assert (LET_START in code) == early, cubin.stem


def test_no_kernel_of_a_row_spills(compiled: Compiled) -> None:
    for cubin in compiled.cubins:
        ptx = cubin.with_suffix(".ptx").read_text()
        _, spilled_bytes = assemble(ptx, compiled.capability)
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


@pytest.mark.parametrize(
    ("when", "wrong"),
    [
        ("loads", "LDG"),
        ("stores", "STG"),
        ("counts", "ATOM"),
        ("sometimes", "EXIT"),
        ("never", "it does not wait"),
        ("right", ""),
    ],
)
def test_a_kernel_that_does_not_wait_is_found(
    when: str, wrong: str, tmp_path: Path
) -> None:
    source = ASTSource(
        fn=hasty,
        signature={"x": "*i32", "out": "*i32", "WHEN": "constexpr"},
        constexprs={"WHEN": when},
    )
    options = {"launch_pdl": True}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    cubin = tmp_path / "hasty.cubin"
    cubin.write_bytes(made.asm["cubin"])
    reported = wrong_before_the_wait(instructions(cubin))
    if not wrong:
        assert reported == []
    else:
        assert any(wrong in line for line in reported), reported

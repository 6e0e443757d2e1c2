"""`make wheelhouse` with --kernels: kernels compiled for a card that is not here.

Runs `compile_rows` for the sets of a check and of the tables, in as many processes as
there are cores, with the Python that has the machine's Triton.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from llama_perf.errors import UserError
from scripts.offline.cuda_table import SETS
from scripts.offline.kernel_cache import Compiler, pack

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("sm_80", "sm_90", "sm_100")
ALL_SETS = ("cuda-check", "cuda", *SETS)
_ASK = (
    "import dataclasses, json, scripts.offline.compile_rows;"
    "from scripts.offline.kernel_cache import Compiler;"
    "print(json.dumps(dataclasses.asdict(Compiler.here())))"
)


def compile_kernels(
    out: Path, target: str, python: Path, *, sets: Sequence[str] = ALL_SETS
) -> tuple[Path, int]:
    """An archive in `out` of what the rows of `sets` launch, and how many kernels.

    `python` is an interpreter whose Triton is the machine's. Raises UserError where it
    cannot compile.
    """
    compiler = _ask(python)
    count = os.cpu_count() or 1
    command = [
        str(python),
        "-m",
        "scripts.offline.compile_rows",
        target.removeprefix("sm_"),
    ]
    with tempfile.TemporaryDirectory(prefix="kernels-") as name, ExitStack() as opened:
        cache = Path(name)
        told = [opened.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        processes = [
            subprocess.Popen(
                [*command, f"{part}/{count}", *sets],
                env=_environment(TRITON_CACHE_DIR=name),
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
            for part, said in enumerate(told, start=1)
        ]
        for process in processes:
            opened.callback(_end, process)
        for process, said in zip(processes, told, strict=True):
            if process.wait() != 0:
                said.seek(0)
                raise _cannot(python, said.read().decode(errors="replace"))
        archive = out / compiler.archive(target)
        return archive, pack(cache, archive)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _ask(python: Path) -> Compiler:
    try:
        done = subprocess.run(
            [str(python), "-c", _ASK],
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise _cannot(python, str(error.strerror)) from None
    if done.returncode != 0:
        raise _cannot(python, done.stderr)
    return Compiler(**json.loads(done.stdout.splitlines()[-1]))


def _environment(**more: str) -> dict[str, str]:
    # This checkout's kernels, whatever that Python has installed.
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def _cannot(python: Path, said: str) -> UserError:
    reason = (said.strip().splitlines() or ["it said nothing"])[-1]
    return UserError(f"kernels-python: {str(python)!r} compiles no kernels: {reason}")

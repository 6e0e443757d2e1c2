"""How a worker's process is started: its command, and its variables."""

import os
from collections.abc import Collection
from pathlib import Path

from llama_perf.files import cache_folder

# By itself glibc takes a large block from the kernel, page by page, each time that its
# heap has no hole of that size: a row of torchao was twice as fast in some processes.
# Its cache of small blocks would keep rests between large ones, which then do not join.
_KEEPS_FREED = (
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"
    ":glibc.malloc.tcache_count=0"
)


def worker_environment(devices: Collection[str]) -> dict[str, str]:
    """The variables of a worker, also of another revision, which lies elsewhere."""
    ours = {"LLAMA_PERF_CACHE": str(cache_folder())}
    # OpenMP's threads would spin for milliseconds, on cores that other threads need.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        ours["GOMP_SPINCOUNT"] = "1000"
    if "cpu" in devices and "GLIBC_TUNABLES" not in os.environ:
        ours["GLIBC_TUNABLES"] = _KEEPS_FREED
    return {**os.environ, **ours}


def worker_command(python: Path, package: Path, replies: int) -> list[str]:
    """The command of a worker that replies to the file descriptor `replies`.

    Older revisions, which `compare --base` starts, have the worker in
    `llama_perf/worker.py`.
    """
    start = """
try:
    from llama_perf.run.worker import main
except ModuleNotFoundError as error:
    if error.name not in ("llama_perf.run", "llama_perf.run.worker"):
        raise
    from llama_perf.worker import main
main(sys.argv[1:])
"""
    return [*python_of(python, package, start), str(replies)]


def ranks_command(python: Path, package: Path, replies: int, ranks: int) -> list[str]:
    """The command of a worker that runs rows of so many ranks: torchrun's.

    Older revisions, which `compare --base` starts, have none.
    """
    start = f"""
try:
    from llama_perf.run.launcher import main
except ModuleNotFoundError as error:
    if error.name not in ("llama_perf.run", "llama_perf.run.launcher"):
        raise
    sys.exit("tensor_parallel: this revision has no rows of several ranks")
main({ranks}, {str(package)!r}, {replies})
"""
    return python_of(python, package, start)


def python_of(python: Path | str, package: Path | str, start: str) -> list[str]:
    """The command that runs `start`, with `llama_perf` from the folder `package` alone.

    `-P` keeps the working directory's modules out. An editable install would give what
    an older revision does not have.
    """
    only = f"""
import sys
sys.path.insert(0, {str(package)!r})
sys.meta_path[:] = [
    finder
    for finder in sys.meta_path
    if not str(getattr(finder, "__module__", "")).startswith("__editable___llama_perf_")
]
"""
    return [str(python), "-P", "-c", only + start]

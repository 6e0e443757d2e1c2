"""The compiler's settings while rows run. Knows neither models nor rows."""

import hashlib
import os
import platform
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from llama_perf.devices import processor
from llama_perf.devices.device import package_version
from llama_perf.llama.code_cache import kept_code
from llama_perf.rows.plugins import home_of


@contextmanager
def compiler_settings(
    *, used: bool = True, cold: bool = False, package: str | None = None
) -> Iterator[None]:
    """Set the inductor flags that torchao recommends for all rows; restore them after.

    They change the unquantized kernels too. The compiler's caches of earlier rows are
    dropped: rows share the block's code, and old entries would count as recompilations.
    With `cold` nothing that was compiled before is used; of a scheme of a `package`
    nothing that was compiled of other code of it. A row that uses no compiler
    does without its import, which takes a second.
    """
    if not used:
        yield
        return
    from torch._inductor import config, lowering

    _forget_compiled()
    tuning = ("coordinate_descent_tuning", "coordinate_descent_check_all_directions")
    flags = (*tuning, "force_fuse_int_mm_with_mul", "fx_graph_cache")
    constraints = {torch.ops.aten._int_mm.default: _with_eager_strides}
    with (
        warnings.catch_warnings(),
        # Loops over a hidden state are too short to be worth a second thread.
        config.patch({**dict.fromkeys(flags, True), "cpp.min_chunk_size": 1 << 15}),
        own_cache_entries(cold=cold, package=package),
        patch.dict(lowering._maybe_layout_constraints, constraints),
    ):
        # torchao's tensors lack the hash that torch 2.13 caches compiled graphs by.
        warnings.filterwarnings("ignore", message=".*_stable_hash_for_caching.*")
        # A float32 row does without TF32 on purpose.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        try:
            yield
        finally:
            _forget_compiled()


@cache
def load_compiler(device: torch.device) -> None:
    """Have the compiler load and build what it needs for any code at all.

    What it imports, and the C++ headers it builds, would else be the first row's.
    """
    torch.compile(torch.sin)(torch.ones(4, device=device))
    _forget_compiled()


@contextmanager
def own_cache_entries(
    *, cold: bool = False, package: str | None = None
) -> Iterator[None]:
    """Compile for this machine, these libraries and this revision: no other's code.

    What is compiled is kept for later runs, unless `cold`: then nothing is found and
    nothing is kept, but for the C++ operators, which are no row's. The key is also part
    of inductor's own: a folder that a user names may hold code of anyone.
    """
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache

    # Every compiler's settings; they carry no types.
    shared: Any = torch.compiler.config
    key = code_key(package)
    # g++ 12 crashes on precompiled headers where an arm64 processor has SVE.
    flags = {"cpp_cache_precompile_headers": False} if processor.is_arm64() else {}
    with (
        shared.patch({"cache_key_tag": f"{shared.cache_key_tag} {key}"}),
        config.patch(flags),
        fresh_cache() if cold else kept_code(key),
    ):
        yield


def code_key(package: str | None = None) -> str:
    """What compiled code depends on, with the code of a scheme's own package.

    ATEN_CPU_CAPABILITY changes the processor: inductor would take code for AVX-512 and
    compile it without AVX-512. Code for one number of threads is wrong for another. Of
    a quantized tensor torch's key has the attributes, not the code that multiplies:
    another revision's compiled code would run, and be measured, in place of this one's.
    """
    parts = {
        "processor": f"{processor.name()}, {processor.instructions()}",
        "features": processor.features(),
        "threads": torch.get_num_threads(),
        "compiler": _compiler_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: package_version(name) for name in ("torchao", "triton")},
        "source": source_hash(),
    }
    if package not in (None, "torchao"):
        parts[f"source of {package}"] = hash_of_files(home_of(package))
    return ", ".join(f"{name} {value}" for name, value in parts.items())


@cache
def _compiler_version() -> str:
    """The first line of what the C++ compiler says of itself; "" without one."""
    command = [os.environ.get("CXX", "g++"), "--version"]
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.check_output(
            command, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=20
        )
        return said.decode(errors="replace").partition("\n")[0]
    return ""


def hash_of_files(home: Path | None) -> str:
    """A hash of the Python files of a package, or of the one module `home`."""
    digest = hashlib.sha256()
    if home is not None:
        for path in [home] if home.is_file() else sorted(home.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def source_hash() -> str:
    """A hash of the code that multiplies with quantized weights, and of this file.

    The constraint below is no part of inductor's key.
    """
    here = Path(__file__).resolve()
    digest = hashlib.sha256(here.read_bytes())
    for folder in ("kernels", "quantize"):
        for path in sorted((here.parents[1] / folder).rglob("*")):
            # Python's own compiled code lies among it.
            if path.is_file() and path.parent.name != "__pycache__":
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _with_eager_strides(node: Any, *args: Any, **kwargs: Any) -> Any:
    """An operator's arguments with the strides that eager code gives it.

    Inductor may choose any for a single row. For some `_int_mm` of torch 2.13 does not
    write its result, and torchao's int8dq decodes noise on a CPU with AMX.
    """
    from torch._inductor.ir import ExternKernel

    strides = [argument.meta["val"].stride() for argument in node.args]
    exact = map(ExternKernel.require_exact_strides, args, strides)
    return tuple(exact), kwargs


def compiled_anew() -> bool:
    """Whether code was compiled since the compiler was last reset, none of it found."""
    from torch._dynamo.utils import counters

    hits = {"inductor": "fxgraph_cache_hit", "aot_autograd": "autograd_cache_hit"}
    found = any(counters[part][name] for part, name in hits.items())
    return counters["stats"]["unique_graphs"] > 0 and not found


def _forget_compiled() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()

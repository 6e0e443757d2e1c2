"""The compiler's settings while rows run. Knows neither models nor rows."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from llama_perf.devices import processor
from llama_perf.devices.device import package_version


@contextmanager
def compiler_settings() -> Iterator[None]:
    """Set the inductor flags that torchao recommends for all rows; restore them after.

    They change the unquantized kernels too. The compiler's caches of earlier rows are
    dropped: rows share the block's code, and old entries would count as recompilations.
    """
    from torch._inductor import config, lowering

    _forget_compiled()
    tuning = ("coordinate_descent_tuning", "coordinate_descent_check_all_directions")
    flags = (*tuning, "force_fuse_int_mm_with_mul", "fx_graph_cache")
    constraints = {torch.ops.aten._int_mm.default: _with_eager_strides}
    with (
        warnings.catch_warnings(),
        # Loops over a hidden state are too short to be worth a second thread.
        config.patch({**dict.fromkeys(flags, True), "cpp.min_chunk_size": 1 << 15}),
        own_cache_entries(),
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


@contextmanager
def own_cache_entries() -> Iterator[None]:
    """Compile for this processor, these kernels and this torchao: no other's code.

    They go into the key of inductor's cache. ATEN_CPU_CAPABILITY changes the processor:
    inductor would take code for AVX-512 from the cache and compile it without AVX-512.
    Of a quantized tensor torch's key has the attributes, not the code that multiplies:
    another revision's compiled code would run, and be measured, in place of this one's.
    """
    from torch._inductor import config

    # Every compiler's settings; they carry no types.
    shared: Any = torch.compiler.config
    code = f"kernels {source_hash()}, torchao {package_version('torchao')}"
    tag = f"{shared.cache_key_tag} {processor.features()}, {code}"
    # g++ 12 crashes on precompiled headers where an arm64 processor has SVE.
    flags = {"cpp_cache_precompile_headers": False} if processor.is_arm64() else {}
    with shared.patch({"cache_key_tag": tag}), config.patch(flags):
        yield


@cache
def source_hash() -> str:
    """A hash of the code that multiplies with quantized weights."""
    digest, package = hashlib.sha256(), Path(__file__).resolve().parents[1]
    for folder in ("kernels", "quantize"):
        for path in sorted((package / folder).rglob("*.py")):
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


def _forget_compiled() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()

"""The compiler's settings while rows run. Knows neither models nor rows."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from llama_perf.devices import processor


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
        config.patch(dict.fromkeys(flags, True)),
        compiling_for_this_processor(),
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
def compiling_for_this_processor() -> Iterator[None]:
    """Compile for this processor: its features go into the key of inductor's cache.

    ATEN_CPU_CAPABILITY changes them. Without that, inductor would take code for AVX-512
    from the cache and compile it without AVX-512.
    """
    from torch._inductor import config

    # Every compiler's settings; they carry no types.
    shared: Any = torch.compiler.config
    tag = f"{shared.cache_key_tag} {processor.features()}"
    # g++ 12 crashes on precompiled headers where an arm64 processor has SVE.
    flags = {"cpp_cache_precompile_headers": False} if processor.is_arm64() else {}
    with shared.patch({"cache_key_tag": tag}), config.patch(flags):
        yield


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

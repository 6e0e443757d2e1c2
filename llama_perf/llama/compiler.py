"""The compiler's settings while rows run. Knows neither models nor rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from llama_perf.devices import processor

FLAGS = {
    "coordinate_descent_tuning": True,
    "coordinate_descent_check_all_directions": True,
    "force_fuse_int_mm_with_mul": True,
    "fx_graph_cache": True,
}


@contextmanager
def compiler_settings() -> Iterator[None]:
    """The inductor flags torchao recommends, for every row alike, then put back.

    They change the unquantized kernels too, so a row that alone had them would not
    compare with the others. The compiler's caches of earlier rows are dropped: rows
    share the block's code, and inherited entries would count as recompilations.
    """
    from torch._inductor import config, lowering

    _forget_compiled()
    constraints = {torch.ops.aten._int_mm.default: _with_eager_strides}
    with (
        warnings.catch_warnings(),
        config.patch(FLAGS),
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
    """Compile what this processor runs, whatever an earlier run left on the disk.

    Graphs in inductor's cache are kept apart by the processor's features, which
    ATEN_CPU_CAPABILITY changes: inductor takes code for AVX-512 from there, and then
    compiles it without.
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

    Inductor may write any stride for a single row. With some of them `_int_mm` of torch
    2.13 leaves its result as it finds it, so that torchao's int8dq would decode noise
    on a CPU with AMX.
    """
    from torch._inductor.ir import ExternKernel

    strides = [each.meta["val"].stride() for each in node.args]
    exact = map(ExternKernel.require_exact_strides, args, strides)
    return tuple(exact), kwargs


def _forget_compiled() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()

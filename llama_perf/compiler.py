"""The compiler's settings while rows run. Knows neither models nor rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def compiler_settings() -> Iterator[None]:
    """The inductor flags torchao recommends, for every row alike, then put back.

    They change the unquantized kernels too, so a row that alone had them would not
    compare with the others. The compiler's caches of earlier rows are dropped: rows
    share the block's code, and inherited entries would count as recompilations.
    """
    from torch._inductor import config

    _forget_compiled()
    flags = {
        "coordinate_descent_tuning": True,
        "coordinate_descent_check_all_directions": True,
        "force_fuse_int_mm_with_mul": True,
        "fx_graph_cache": True,
    }
    with warnings.catch_warnings(), config.patch(flags):
        # torchao's tensors lack the hash that torch 2.13 caches compiled graphs by.
        warnings.filterwarnings("ignore", message=".*_stable_hash_for_caching.*")
        # A float32 row does without TF32 on purpose.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        try:
            yield
        finally:
            _forget_compiled()


def _forget_compiled() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()

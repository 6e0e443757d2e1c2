"""Which kernels run a fused step: a CPU's, five for a layer, one for all, another's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llama_perf.errors import NotRunnable
from llama_perf.llama.fused_cpu import FusedCpuStep
from llama_perf.llama.fused_own import FusedOwnStep
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.transformer import Transformer
from llama_perf.rows.choices import PERSISTENT

if TYPE_CHECKING:
    # It imports Triton.
    from llama_perf.llama.fused import FusedStep


def fused_step(
    model: Transformer, options: EngineOptions
) -> FusedStep | FusedCpuStep | FusedOwnStep:
    """The step that `options` ask for; raises NotRunnable."""
    if options.own_product is not None:
        if (ranks := model.config.ranks) > 1:
            own = "a scheme of your own has no fused kernels"
            raise NotRunnable(f"fused: {own} for {ranks} ranks")
        return FusedOwnStep(model, options.own_product, options)
    persistent, batch = options.fused == PERSISTENT, options.batch_size
    # Triton's interpreter runs its kernels on a CPU.
    if model.device.type == "cpu" and "TRITON_INTERPRET" not in os.environ:
        if persistent:
            raise NotRunnable(f"fused: {PERSISTENT!r} needs device 'cuda'")
        return FusedCpuStep(model, batch_size=batch)
    if persistent:
        from llama_perf.llama.persistent import PersistentStep

        return PersistentStep(model, batch_size=batch)
    from llama_perf.llama.fused import FusedStep

    return FusedStep(model, batch_size=batch)

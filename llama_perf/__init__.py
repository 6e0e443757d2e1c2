"""llama-perf: performance-regression tests of Llama generation under quantization."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_perf.checkpoints.load import load_model as load_model
    from llama_perf.checkpoints.save import save_model as save_model
    from llama_perf.llama.engine import generate as generate
    from llama_perf.llama.fused_product import FusedProduct as FusedProduct
    from llama_perf.llama.options import EngineOptions as EngineOptions
    from llama_perf.llama.options import Sampling as Sampling
    from llama_perf.quantize.apply import quantize_model as quantize_model
    from llama_perf.quantize.plugins import OwnScheme as OwnScheme

# torch's wheels for arm64 bring mimalloc, which reads this when torch is loaded. By
# itself it keeps what a row freed, and the next row's peak would be too small.
os.environ.setdefault("MIMALLOC_PURGE_DELAY", "0")
# It lowers torch and not oneDNN: torch's attention in bfloat16 then breaks where oneDNN
# may use AMX.
if os.environ.get("ATEN_CPU_CAPABILITY") in {"avx2", "default"}:
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

# Imported on first use, so that `llama-perf rows` does not wait for torch.
_HOMES = {
    "load_model": "llama_perf.checkpoints.load",
    "quantize_model": "llama_perf.quantize.apply",
    "save_model": "llama_perf.checkpoints.save",
    "generate": "llama_perf.llama.engine",
    "EngineOptions": "llama_perf.llama.options",
    "Sampling": "llama_perf.llama.options",
    "OwnScheme": "llama_perf.quantize.plugins",
    "FusedProduct": "llama_perf.llama.fused_product",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

"""Importing torchao without its start-up noise.

On a CPU build of torch its import logs "Failed to load ... .so" for CUDA extensions
and a pytree deprecation. Where it was installed uncompiled, Python warns of an escape
sequence in its source, which pytest makes an error. None is of use to whoever runs
this suite. They are quiet only during that import.
"""

from __future__ import annotations

import logging
import warnings
from importlib import import_module

from llama_perf.errors import NotRunnable

_LOGGERS = ("torchao", "torch.utils._pytree")


def import_torchao() -> None:
    """Import torchao once and quietly; raises NotRunnable."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*invalid escape sequence")
            import_module("torchao")
            import_module("torchao.quantization")
    except ImportError as error:
        raise NotRunnable(f"torchao cannot be imported: {error}") from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

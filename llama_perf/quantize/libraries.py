"""Other libraries of kernels, and their quiet import.

Each is an optional extra: it is imported when a row first asks for it.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from unittest.mock import patch

from llama_perf.devices.device import package_version
from llama_perf.errors import NotRunnable

LIBRARIES = ("gemlite", "bitsandbytes")
"""Those of a row's `kernels`."""


@cache
def import_library(name: str) -> ModuleType:
    """Import a kernel library without what it logs; raises NotRunnable.

    On its way nothing is fetched from a hub: with the package `kernels` installed,
    bitsandbytes would look there for faster kernels.
    """
    if package_version(name) is None:
        raise NotRunnable(f"{name} is not installed (pip install --no-deps {name})")
    try:
        with patch.dict(os.environ, HF_HUB_OFFLINE="1"), quiet():
            return import_module(name)
    except Exception as error:  # a library may fail in any way without its device
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise NotRunnable(f"{name} cannot be imported: {reason}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Neither logs nor warnings, of libraries that are being imported."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

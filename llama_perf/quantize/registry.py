"""The builder of each scheme on each kind of kernels, and torchao's import.

A builder turns a parsed scheme into the torchao config that `quantize_` takes. Each
file of schemes registers its own: native ones by `PackedTensor`, torchao's by the
decorator. Knows no model.
"""

from __future__ import annotations

import logging
import pkgutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

from llama_perf.errors import NotRunnable
from llama_perf.rows.config_call import ConfigCall
from llama_perf.rows.schemes import FAMILIES, OWN, Scheme

if TYPE_CHECKING:
    import torch
    from torchao.core.config import AOBaseConfig

    Builder: TypeAlias = Callable[[Scheme, torch.device, torch.dtype], AOBaseConfig]

_BUILDERS: dict[tuple[str, str], Builder] = {}


def register(*families: str, kernels: str) -> Callable[[Builder], Builder]:
    """Register a builder for families of schemes on one kind of kernels."""

    def add(builder: Builder) -> Builder:
        for family in families:
            key = (family, kernels)
            assert key not in _BUILDERS, f"{key} is registered twice"
            assert kernels in FAMILIES.get(family, ()), f"{key} is not in FAMILIES"
            _BUILDERS[key] = builder
        return builder

    return add


def config_for(
    scheme: Scheme, *, kernels: str, device: torch.device, dtype: torch.dtype
) -> AOBaseConfig:
    """The torchao config of `scheme`.

    Raises NotRunnable where it is not built on these kernels, or needs another
    device or dtype; for one of a user's package also as `own_config`.
    """
    if kernels not in scheme.kernels:
        built = ", ".join(scheme.kernels)
        raise NotRunnable(
            f"scheme {scheme.name} is not built on {kernels}; built on: {built}"
        )
    import_all()
    if scheme.config is not None:
        return _own_config(scheme.config)
    if scheme.family == OWN:
        from llama_perf.quantize import plugins

        return plugins.config_for(scheme.name, device=device, dtype=dtype)
    return _BUILDERS[scheme.family, kernels](scheme, device, dtype)


def import_for(scheme: str) -> None:
    """Import what has the tensors of a scheme; raises as `config_for` does."""
    import_all()
    parsed = Scheme.parse(scheme)
    if parsed.config is not None:
        _own_config(parsed.config)
    elif parsed.family == OWN:
        from llama_perf.quantize import plugins

        plugins.own_scheme(parsed.name)


def _own_config(config: ConfigCall) -> AOBaseConfig:
    # It needs torchao, which is imported by now.
    from llama_perf.quantize.own_configs import own_config

    return own_config(config)


@cache
def import_all() -> None:
    """Import every module of this package, so that each scheme is registered.

    `torch.load` knows the tensors of each from then on. Raises NotRunnable without
    torchao.
    """
    import_torchao()
    # Not in every torchao; a file that needs it is then refused by its class.
    with suppress(ImportError):
        import_module("torchao.prototype.quantization.int4")
    package = import_module("llama_perf.quantize")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        import_module(module.name)
    built = {(family, kernels) for family in FAMILIES for kernels in FAMILIES[family]}
    missing = built - _BUILDERS.keys()
    assert not missing, f"no module registers {sorted(missing)}"


def import_torchao() -> None:
    """Import torchao without its start-up noise; raises NotRunnable.

    On a CPU build of torch its import logs "Failed to load ... .so" for CUDA
    extensions and a pytree deprecation. Python warns of its source when it compiles it.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module("torchao.quantization")
    except ImportError as error:
        raise NotRunnable(f"torchao cannot be imported: {error}") from None
    finally:
        logging.disable(before)

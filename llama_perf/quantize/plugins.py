"""The schemes of installed packages: what an entry point gives, and its loading.

`llama_perf.rows.plugins` finds them by name; here their code is imported and used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

from llama_perf.errors import NotRunnable, SchemeError, SpecError, UserError
from llama_perf.llama.fused_product import FusedProduct
from llama_perf.quantize.scheme_faults import first_line, place_in
from llama_perf.rows.choices import DEVICES, check_choice
from llama_perf.rows.plugins import SCHEMES, Offer, offered, usable
from llama_perf.rows.schemes import is_built_in
from llama_perf.words import did_you_mean

if TYPE_CHECKING:
    import torch
    from torchao.core.config import AOBaseConfig

    ConfigFactory: TypeAlias = Callable[[torch.device, torch.dtype], AOBaseConfig]


@dataclass(frozen=True, kw_only=True)
class OwnScheme:
    """A quantization scheme of a package, as its entry point gives it.

    `config` is torchao's config for `quantize_`, or a function of the device and the
    activations' dtype that makes one. `devices` are the kinds it runs on.
    `bytes_per_weight`, with scales and all, predicts a model's size; without it the
    unquantized size is an upper bound. `rounds_activations` says that products round
    their input too, which makes the value check less strict. `fused_product` runs the
    linears of rows with `fused = true`. Raises SpecError.
    """

    config: AOBaseConfig | ConfigFactory
    devices: Sequence[str] = DEVICES
    bytes_per_weight: float | None = None
    rounds_activations: bool = False
    fused_product: FusedProduct | None = None

    def __post_init__(self) -> None:
        if isinstance(self.devices, str) or not self.devices:
            raise SpecError("devices", self.devices, "give a tuple of kinds of devices")
        for device in self.devices:
            check_choice("devices", device, DEVICES)
        size = self.bytes_per_weight
        if size is not None and not (0 < size < math.inf):
            raise SpecError("bytes_per_weight", size, "allowed: more than 0")
        if self.fused_product is not None and not callable(self.fused_product):
            allowed = "allowed: a function, see llama_perf.FusedProduct"
            raise SpecError("fused_product", self.fused_product, allowed)

    def config_for(self, device: torch.device, dtype: torch.dtype) -> AOBaseConfig:
        """The config for a device and a dtype; raises TypeError for anything else."""
        from torchao.core.config import AOBaseConfig

        made = self.config
        if not isinstance(made, AOBaseConfig) and callable(made):
            made = made(device, dtype)
        if not isinstance(made, AOBaseConfig):
            kind = type(made).__name__
            raise TypeError(f"config: {kind} is not allowed; allowed: an AOBaseConfig")
        return made


def own_scheme(name: str) -> OwnScheme:
    """The scheme that an installed package adds under `name`.

    Raises NotRunnable where none does, SpecError where two do, and SchemeError with the
    place in the package's code where that cannot be imported.
    """
    offer = offered(SCHEMES, name, is_built_in, field="quantization")
    if offer is None:
        known = [other.name for other in usable(SCHEMES, is_built_in)]
        installed = f"installed: {', '.join(known) or 'none'}"
        meant = did_you_mean(name, known)
        problem = f"scheme {name}: no installed package has it; {meant}{installed}"
        raise NotRunnable(problem)
    return load(offer)


@cache
def load(offer: Offer) -> OwnScheme:
    """Import what an offer names; raises SchemeError with the place in its code."""
    what = f"scheme {offer.name} of {offer.place}"
    try:
        found = offer.load()
    except (Exception, SystemExit) as error:  # whatever a package's code raises
        where = place_in(error, offer.module_package)
        reason = f"{type(error).__name__}: {first_line(error)}"
        reason += "" if where is None else f", at {where}"
        raise SchemeError(f"{what} cannot be imported: {reason}") from error
    if not isinstance(found, OwnScheme):
        kind = type(found).__name__
        raise UserError(f"{what} is of type {kind}; give a llama_perf.OwnScheme")
    return found


def config_for(name: str, *, device: torch.device, dtype: torch.dtype) -> AOBaseConfig:
    """The config of an installed scheme; raises NotRunnable for another device."""
    scheme = own_scheme(name)
    if device.type not in scheme.devices:
        runs = ", ".join(scheme.devices)
        raise NotRunnable(f"scheme {name} runs on {runs}, not on {device.type}")
    return scheme.config_for(device, dtype)


def installed_scheme(name: str | None) -> OwnScheme | None:
    """The scheme of that name if it is one that a package adds; raises as above."""
    if name is None or ":" in name or is_built_in(name):
        return None
    return own_scheme(name)


def rounds_activations(name: str | None) -> bool:
    """Whether products with weights of this scheme may round their input to codes."""
    if (own := installed_scheme(name)) is not None:
        return own.rounds_activations
    scheme = name or ""
    # Of a config of the user's own that is not known.
    some = ("autoquant", "llm-int8")
    return "dq" in scheme or ":" in scheme or scheme.startswith(some)

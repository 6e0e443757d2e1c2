"""The schemes of installed packages: what an entry point gives, and its loading.

`llama_perf.rows.plugins` finds them by name; here their code is imported and used.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

from llama_perf.errors import NotRunnable, SpecError, UserError, one_line
from llama_perf.llama.fused_product import FusedProduct
from llama_perf.rows.plugins import NAME, SCHEMES, Offer, offered, usable
from llama_perf.rows.schemes import OWN, is_built_in
from llama_perf.rows.spec import DEVICES, check_choice
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

    Raises NotRunnable where none does, SpecError where two do, and UserError with the
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
    """Import what an offer names; raises UserError with the place in its code."""
    what = f"scheme {offer.name} of {offer.place}"
    try:
        found = offer.load()
    except Exception as error:  # whatever a package's code raises
        message = one_line(f"{type(error).__name__}: {error}".partition("\n")[0])
        where = _place(error, offer)
        raise UserError(f"{what} cannot be imported: {message}{where}") from error
    if not isinstance(found, OwnScheme):
        kind = type(found).__name__
        raise UserError(f"{what} is of type {kind}; give a llama_perf.OwnScheme")
    return found


def _place(error: Exception, offer: Offer) -> str:
    """The line of the package's code that an error came through last, or nothing."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" (at {error.filename}:{error.lineno})"
    home = offer.home
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if home is not None and frame.filename.startswith(str(home)):
            return f" (at {frame.filename}:{frame.lineno})"
    return ""


def config_for(name: str, *, device: torch.device, dtype: torch.dtype) -> AOBaseConfig:
    """The config of an installed scheme; raises NotRunnable for another device."""
    scheme = own_scheme(name)
    if device.type not in scheme.devices:
        runs = ", ".join(scheme.devices)
        raise NotRunnable(f"scheme {name} runs on {runs}, not on {device.type}")
    return scheme.config_for(device, dtype)


def installed(name: str | None, kernels: str) -> OwnScheme | None:
    """The scheme of a row's weights where an installed package adds it, or None."""
    plain = name is not None and NAME.fullmatch(name)
    return own_scheme(name) if plain and name and kernels == OWN else None


def rounds_activations(name: str | None, kernels: str) -> bool:
    """Whether products with weights of this scheme may round their input to codes."""
    if (own := installed(name, kernels)) is not None:
        return own.rounds_activations
    scheme = name or ""
    # Whether a config that a row spells out rounds activations is not known.
    some = ("autoquant", "llm-int8")
    return "dq" in scheme or ":" in scheme or scheme.startswith(some)

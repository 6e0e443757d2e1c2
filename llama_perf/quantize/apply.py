"""Quantizing a module or a whole model, and saying so when a scheme does not fit.

torchao skips a weight that does not fit its group size and only logs it; here that
is an error, so that no row runs unquantized under a quantized name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from llama_perf.errors import SpecError
from llama_perf.llama.row_engine import RowModel
from llama_perf.llama.transformer import (
    Origin,
    Transformer,
    check_transformer,
    is_unquantized,
)
from llama_perf.quantize.registry import config_for
from llama_perf.quantize.scheme_faults import scheme_faults
from llama_perf.results.measurement import LinearChoice
from llama_perf.rows.choices import KERNELS, check_choice
from llama_perf.rows.modules import EVERY_LINEAR, ModuleFilter
from llama_perf.rows.schemes import (
    AUTOQUANT,
    OWN,
    UNQUANTIZED,
    Scheme,
    check_one_package,
)
from llama_perf.rows.spec import RowSpec

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

Quantizer = Callable[[nn.Module, str], None]


def quantize_model(
    model: Transformer,
    scheme: str,
    *,
    kernels: str | None = None,
    modules: str | None = None,
    compile: bool = False,
) -> Transformer:
    """Quantize every linear layer of `model` in place, and return it.

    `scheme` and `modules`, which selects linears by name, are what a row has under
    these names. `kernels` is "native" or "torchao"; by default native where this scheme
    is built so, else torchao. autoquant chooses for a generation of the reference's
    lengths, with `compile` for one whose decoding is compiled. Raises SpecError for
    an unknown scheme or one that does not fit a layer, NotRunnable for one that is
    not built or not for this device, SchemeError where a package's config breaks.
    """
    from llama_perf.quantize.autoquant.choose import choose

    check_transformer(model)
    parsed, selected = Scheme.parse(scheme), ModuleFilter.parse(modules)
    chosen = parsed.kernels[0] if kernels is None else kernels
    check_choice("kernels", chosen, KERNELS)
    selected.check(model.config.linear_names)
    if not all(is_unquantized(parameter) for parameter in model.parameters()):
        raise quantized_already(scheme, model.origin)
    device, dtype = model.device, model.dtype
    make = partial(
        make_quantizer,
        scheme,
        kernels=chosen,
        device=device,
        dtype=dtype,
        selected=selected,
    )
    quantizer = make()
    if scheme in AUTOQUANT:
        row = RowSpec(
            model="model",
            quantization=scheme,
            modules=selected.text,
            dtype=str(dtype).removeprefix("torch."),
            device=device.type,
            compile=compile,
        )
        quantizer = make(schemes=chosen_schemes(choose(row, model.config)))
    quantizer(model, "model")
    record_scheme(model, scheme=parsed.name, kernels=chosen, modules=selected.text)
    return model


def chosen_schemes(choices: Sequence[LinearChoice]) -> dict[tuple[int, int], str]:
    """The scheme that autoquant chose, by the shape (N, K) of a linear."""
    return {(pick.out_features, pick.in_features): pick.chosen for pick in choices}


def quantized_already(scheme: str, origin: Origin | None) -> SpecError:
    """The error of asking for `scheme` where the weights have one."""
    summary = f" ({origin.summary})" if origin is not None and origin.scheme else ""
    return SpecError(
        "quantization", scheme, f"this model is quantized already{summary}"
    )


def record_scheme(
    model: RowModel, *, scheme: str, kernels: str, modules: str | None = None
) -> None:
    """Have the model's origin say what it was quantized to."""
    if model.origin is not None:
        model.origin = replace(
            model.origin, scheme=scheme, kernels=kernels, modules=modules
        )


def make_quantizer(
    name: str,
    *,
    kernels: str,
    device: torch.device,
    dtype: torch.dtype,
    schemes: Mapping[tuple[int, int], str] = {},
    selected: ModuleFilter = EVERY_LINEAR,
) -> Quantizer:
    """A function that quantizes every selected linear of a module in place.

    It takes the module and the module's name within the model. `schemes` is what
    autoquant chose for each shape (N, K). Raises SpecError for an unknown scheme,
    NotRunnable for one not built or not for this device; the function raises SpecError
    for a weight that does not fit. Either raises SchemeError where a package's config
    breaks.
    """
    scheme = Scheme.parse(name, kernels=kernels)
    check_one_package(name)
    config_of = partial(config_for, kernels=kernels, device=device, dtype=dtype)
    with scheme_faults(name):
        config = config_of(scheme)
    from torchao.quantization import quantize_

    from llama_perf.quantize.packed_tensor import check_shapes, check_weight

    def config_for_shape(rows: int, columns: int) -> AOBaseConfig | None:
        if scheme.family not in AUTOQUANT:
            return config
        if (own := schemes.get((rows, columns))) is None:
            known = ", ".join(map(str, schemes)) or "no shape at all"
            raise SpecError("shape", (rows, columns), f"autoquant chose for {known}")
        return None if own == UNQUANTIZED else config_of(Scheme.parse(own))

    def quantize(module: nn.Module, prefix: str) -> None:
        modules = module.named_modules(prefix=prefix)
        linears = {
            path: one
            for path, one in modules
            if isinstance(one, nn.Linear)
            and selected.selects(path.removeprefix("model."))
        }
        shapes = {path: tuple(one.weight.shape) for path, one in linears.items()}
        cut = {
            path
            for path, linear in linears.items()
            if getattr(linear, "cut", None) == "columns"
        }
        check_shapes(scheme, config, shapes, device=device, cut_by_columns=cut)
        for path, linear in linears.items():
            check_weight(linear.weight, name=name, where=path)
        for path, linear in linears.items():
            if (own := config_for_shape(*linear.weight.shape)) is None:
                continue
            # A container, since quantize_ replaces children and not the root itself.
            container = nn.ModuleDict({"root": linear})
            with scheme_faults(name):
                quantize_(container, own)
            if container["root"] is not linear:
                other = type(container["root"]).__name__
                problem = f"it replaces {path} by {other}; allowed: configs that"
                problem += " quantize the weight of a linear and need no calibration"
                raise SpecError("quantization", name, problem)
            if is_unquantized(linear.weight):
                who = "it" if kernels == OWN else kernels
                problem = f"{who} left {path}, {shapes[path]}, unquantized"
                raise SpecError("quantization", name, problem)

    return quantize

"""Whether the tensors of a `.pth` file are what it says, before they are computed with.

A pickle holds whatever was written into it, such as a view of a few bytes with any
shape, or a quantized tensor whose parts do not fit each other: a kernel would read past
their ends. Knows no scheme: a weight of the same shape, quantized without values, shows
what its tensors must be.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llama_perf.checkpoints.saved import Saved
from llama_perf.devices.device import package_version
from llama_perf.errors import UserError, WeightsError
from llama_perf.llama.transformer import is_unquantized
from llama_perf.quantize.apply import make_quantizer
from llama_perf.rows.schemes import AUTOQUANT, Scheme, is_config

if TYPE_CHECKING:
    from llama_perf.quantize.packed_tensor import PackedTensor

_LINEARS = re.compile(r"(.*\.)?(wqkv|wo|w1|w2|w3|output)\.weight")
# Of the types that scales have, a weight's values choose.
_SIXTEEN_BITS = (torch.float16, torch.bfloat16)
_ANY_SIXTEEN = "float16 or bfloat16"
# Rows of torchao's weights from whose parts those of any number of rows follow.
_PROBE_ROWS = (64, 128)
Layout = tuple[object, ...]


def kernels_of(weight: object) -> str | None:
    """The kernels of a quantized tensor: native or torchao; None if it is not one."""
    from torchao.utils import TorchAOBaseTensor

    from llama_perf.quantize.packed_tensor import PackedTensor

    if isinstance(weight, PackedTensor):
        return "native"
    return "torchao" if isinstance(weight, TorchAOBaseTensor) else None


def check_tensors(tensors: Mapping[str, Any], saved: Saved | None, path: Path) -> None:
    """Raise WeightsError unless the tensors of a file are those that `saved` says.

    autoquant chooses a scheme for each linear.
    """
    scheme, said = (None, None) if saved is None else (saved.scheme, saved.kernels)
    n_packed = 0
    for name, value in tensors.items():
        if is_unquantized(value):
            problem = _memory_problem(value)
        else:
            n_packed += 1
            can_be = scheme is not None and _LINEARS.fullmatch(name)
            kernels = kernels_of(value) if can_be else None
            if kernels is None or saved is None or scheme is None:
                problem = (
                    f"{type(value).__name__} is not allowed; allowed: unquantized"
                    " tensors, or those of linear layers with the config.json that"
                    " save_model wrote"
                )
            elif kernels != said:
                problem = (
                    f"a tensor of {kernels} kernels is not allowed; config.json says"
                    f" {said}"
                )
            else:
                problem = _packed_problem(value, saved, scheme)
        if problem:
            raise WeightsError(f"{path}: {name}: {problem}")
    if scheme is not None and not n_packed and scheme not in AUTOQUANT:
        raise WeightsError(f"{path}: no tensor is quantized; config.json says {scheme}")


def _memory_problem(tensor: Tensor) -> str:
    """Why a tensor's values are not all in the file, or nothing."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return f"a {tensor.layout} tensor on {tensor.device} is not allowed"
    needed = tensor.numel() * tensor.element_size()
    if needed > (stored := tensor.untyped_storage().nbytes()):
        return f"damaged: its shape takes {needed} bytes, the file has {stored} of them"
    return ""


def _packed_problem(weight: Any, saved: Saved, scheme: str) -> str:
    """Why a quantized tensor is not what its scheme makes, or nothing."""
    kind: Any = type(weight)
    damaged = f"a damaged {kind.__name__}"
    try:
        names, attributes = weight.__tensor_flatten__()
        parts = {name: getattr(weight, name) for name in names}
        for name, part in parts.items():
            if type(part) is not Tensor:
                return f"{damaged}: {name} is no tensor"
            if problem := _memory_problem(part):
                return f"{damaged}: {name}: {problem}"
        # No format has less than a bit for a weight.
        if weight.numel() > 8 * sum(part.nbytes for part in parts.values()):
            return f"{damaged}: too few bytes for its shape {tuple(weight.shape)}"
        if saved.kernels == "torchao":
            fits = _is_torchaos(weight, parts, saved)
            words = f"{kind.__name__}: these parts are not allowed"
            return "" if fits else f"{words}; config.json says {scheme}"
        own = weight.scheme_name
        if scheme not in AUTOQUANT and own != scheme.removesuffix("-hqq"):
            return f"a tensor of {own} is not allowed; config.json says {scheme}"
        shape = tuple(weight.shape)
        bare = [part.to("meta") for part in parts.values()]
        attributes = [attributes[name] for name in kind.tensor_attribute_names]
        if shape == (weight.rows, weight.columns) and _layout(
            kind(*bare, *attributes)
        ) == _wanted_layout(kind, own, *shape):
            return ""
    # Whatever was stored as an attribute may be asked for its value in there.
    except (UserError, AttributeError, ArithmeticError, LookupError) as error:
        return f"{damaged}: {error}"
    except (TypeError, ValueError, RuntimeError, AssertionError):
        pass
    return f"{damaged}: its parts do not fit its shape {tuple(weight.shape)}"


def _layout(weight: "PackedTensor") -> Layout:
    """Attributes, shapes and types in a CPU's layout, but for the activations' type."""
    weight = weight.laid_out_for(torch.device("cpu"))
    names = weight.tensor_attribute_names
    *attributes, dtype = (getattr(weight, name) for name in names)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError("the activations' dtype")
    parts = [getattr(weight, name) for name in weight.tensor_data_names]
    return (
        *attributes,
        *(tuple(part.shape) for part in parts),
        *(_ANY_SIXTEEN if p.dtype in _SIXTEEN_BITS else p.dtype for p in parts),
    )


@cache
def _wanted_layout(kind: Any, scheme: str, rows: int, columns: int) -> Layout:
    weight = torch.empty(rows, columns, device="meta")
    return _layout(kind.from_float(weight, Scheme.parse(scheme)))


def _is_torchaos(weight: Any, parts: Mapping[str, Tensor], saved: Saved) -> bool:
    """Whether torchao makes such a weight; True where it makes none here."""
    rows, columns = weight.shape
    if is_config(saved.scheme):
        # Nothing is known of its layout: it may pad rows too.
        probe = _torchao_probe(saved, rows, columns)
        return probe is None or _alike(weight, probe, saved)
    small, large = (_torchao_probe(saved, count, columns) for count in _PROBE_ROWS)
    if small is None or large is None:
        return True
    if type(weight) is not type(small):
        return False
    for name, value in _attributes(small).items() if _same_torchao(saved) else ():
        # What depends on the shape differs between the two.
        if _attributes(large)[name] == value != _attributes(weight)[name]:
            return False
    if saved.device != "cpu":
        # A card's layouts have padding.
        return True
    for name, part in parts.items():
        one, two = getattr(small, name), getattr(large, name)
        dims = zip(one.shape, two.shape, strict=True)
        (start, end), share = _PROBE_ROWS, Fraction(rows)
        share = (share - start) / (end - start)
        wanted = [low + (high - low) * share for low, high in dims]
        if list(part.shape) != wanted or part.dtype != one.dtype:
            return False
    return True


def _alike(weight: Any, probe: Any, saved: Saved) -> bool:
    """Whether two weights of one shape have parts of the same shapes and types."""
    if type(weight) is not type(probe):
        return False
    if _same_torchao(saved) and _attributes(weight) != _attributes(probe):
        return False
    names, _ = probe.__tensor_flatten__()
    kinds = ((getattr(it, name) for name in names) for it in (weight, probe))
    return all(
        (own.shape, own.dtype) == (other.shape, other.dtype)
        for own, other in zip(*kinds, strict=True)
    )


def _attributes(weight: Any) -> dict[str, object]:
    attributes: dict[str, object] = weight.__tensor_flatten__()[1]
    return attributes


def _same_torchao(saved: Saved) -> bool:
    return saved.torchao == package_version("torchao")


@cache
def _torchao_probe(saved: Saved, rows: int, columns: int) -> Tensor | None:
    """A few rows as torchao quantizes them; None where it makes none here."""
    assert saved.scheme is not None, "they are quantized"
    device, dtype = torch.device(saved.device), getattr(torch, saved.dtype)
    try:
        quantize = make_quantizer(
            saved.scheme, kernels="torchao", device=device, dtype=dtype
        )
        probe = nn.Linear(columns, rows, bias=False, device=device, dtype=dtype)
        quantize(nn.ModuleDict({"probe": probe.requires_grad_(False)}), "probe")
    # This machine has no such device, or torchao none of its code.
    except (UserError, RuntimeError, AssertionError):
        return None
    return probe.weight.data

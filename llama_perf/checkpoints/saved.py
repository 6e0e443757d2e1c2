"""The record that `save_model` writes of its weights, and whether they fit it.

The field `llama_perf` of its `config.json` holds the scheme, the kernels, the dtype
and the versions it was saved with. Knows neither how the file is read nor what the
bytes of a quantized tensor mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from llama_perf.checkpoints.config import read_json
from llama_perf.errors import RecordError, SpecError, WeightsError
from llama_perf.llama.transformer import Origin, is_unquantized
from llama_perf.rows.schemes import Scheme
from llama_perf.rows.spec import DEVICES, DTYPE_TOKENS, KERNELS
from llama_perf.strict_json import from_plain, record

KEY = "llama_perf"
FORMAT: Final = 2
"""Counts up whenever the stored tensors change their layout or their classes."""
# Where the pickles of format 1 name classes that have moved since.
_MOVED_CLASSES = {
    "llama_perf.quantize.int8wo.Int8Weight": "llama_perf.quantize.row_scaled",
    "llama_perf.quantize.fp6.Fp6Weight": "llama_perf.quantize.row_scaled",
    "llama_perf.quantize.float8wo.Float8Weight": "llama_perf.quantize.row_scaled",
}
_LINEARS = (
    "attention.wqkv.weight",
    "attention.wo.weight",
    "feed_forward.w1.weight",
    "feed_forward.w2.weight",
    "feed_forward.w3.weight",
    "output.weight",
)


@record
class Saved:
    """The field `llama_perf` of a saved `config.json`.

    `format` is that of `FORMAT`; files of format 1 are read as well. `scheme` and
    `kernels` are None where the weights are not quantized; `dtype` is that of the
    activations, `device` the one the weights were packed on.
    """

    format: Literal[1, 2] = FORMAT
    weights: str
    scheme: str | None
    kernels: str | None
    dtype: str
    device: str
    torch: str | None
    torchao: str | None
    llama_perf: str | None

    def __post_init__(self) -> None:
        if self.scheme is not None:
            Scheme.parse(self.scheme, field="scheme")
        kernels = (None,) if self.scheme is None else KERNELS
        _one_of("kernels", self.kernels, kernels)
        _one_of("dtype", self.dtype, tuple(DTYPE_TOKENS))
        _one_of("device", self.device, DEVICES)

    @property
    def origin(self) -> Origin:
        """The origin of a model with these weights."""
        return Origin(weights=self.weights, scheme=self.scheme, kernels=self.kernels)


def _one_of(field: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise SpecError(field, value, f"allowed: {', '.join(map(str, allowed))}")


def read_saved(folder: Path) -> Saved | None:
    """The record in the `config.json` in `folder`, or None; raises WeightsError."""
    path = folder / "config.json"
    if not path.is_file() or (fields := read_json(path).get(KEY)) is None:
        return None
    # First, since a newer record may have fields that are unknown here.
    _check_format(fields, source=f"{path}: {KEY}")
    try:
        return from_plain(Saved, fields, source=f"{path}: {KEY}")
    except RecordError as error:
        raise WeightsError(str(error)) from None


def _check_format(fields: object, *, source: str) -> None:
    if not isinstance(fields, dict):
        return
    number = fields.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise WeightsError(
            f"{source}: format {number} is newer than this llama-perf reads (up to"
            f" {FORMAT}): install llama-perf {fields.get('llama_perf')}, which saved"
            " it, or save the model again with this version"
        )


def import_tensors() -> None:
    """Register every scheme's tensor classes, old paths too, with `torch.load`."""
    from llama_perf.quantize.registry import import_all

    import_all()
    for old_path, module in _MOVED_CLASSES.items():
        tensor_class = getattr(import_module(module), old_path.rpartition(".")[2])
        torch.serialization.add_safe_globals([(tensor_class, old_path)])
    try:
        import_module("torchao.prototype.quantization.int4")
    except ImportError:
        # Not in every torchao; a file that needs it is then refused by its class.
        return


def check_tensors(tensors: Mapping[str, Any], saved: Saved | None, path: Path) -> None:
    """Raise WeightsError unless the tensors of a file are those that `saved` says.

    Mixed kinds are fine: a scheme may choose one for each linear.
    """
    quantized: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if isinstance(value, Tensor) and is_unquantized(value):
            continue
        may_be = saved is not None and saved.scheme is not None
        if not may_be or not name.endswith(_LINEARS) or not _is_quantized(value):
            raise WeightsError(
                f"{path}: {name}: {type(value).__name__} is not allowed; allowed:"
                f" {_allowed(value)}"
            )
        if getattr(value, "zero_layout", "lean") != "lean":
            # Of format 1, which had a second layout of uintx.
            raise WeightsError(
                f"{path}: {name}: zero points of 32 bits are not allowed; quantize the"
                " model anew from its own weights"
            )
        quantized[name] = value
    if saved is not None and saved.scheme is not None:
        _check_kinds(quantized, saved, path)


def _is_quantized(value: object) -> bool:
    from torchao.utils import TorchAOBaseTensor

    return isinstance(value, TorchAOBaseTensor)


def _allowed(value: object) -> str:
    if isinstance(value, Tensor):
        return (
            "unquantized tensors, or those of linear layers with the config.json"
            " that save_model wrote"
        )
    return "unquantized tensors"


def _check_kinds(quantized: dict[str, Tensor], saved: Saved, path: Path) -> None:
    from llama_perf.quantize.packed_tensor import PackedTensor

    if not quantized and not str(saved.scheme).startswith("autoquant"):
        raise WeightsError(
            f"{path}: no tensor is quantized; config.json says {saved.scheme}"
        )
    for name, tensor in quantized.items():
        kernels = "native" if isinstance(tensor, PackedTensor) else "torchao"
        if kernels != saved.kernels:
            raise WeightsError(
                f"{path}: {name}: a tensor of {kernels} kernels is not allowed;"
                f" config.json says {saved.kernels}"
            )


def check_usable(
    saved: Saved, *, path: Path, dtype: torch.dtype, device: torch.device
) -> None:
    """Raise unless these weights run with activations of `dtype` on `device`.

    Native weights run with any of both; torchao's tensors keep the dtype they were
    made for, whatever they are moved to, and their packing is a device's own. Raises
    SpecError, or NotRunnable where the scheme cannot run on this device.
    """
    if saved.scheme is None or saved.kernels != "torchao":
        return
    from llama_perf.quantize.registry import config_for

    name = str(dtype).removeprefix("torch.")
    if name != saved.dtype:
        raise SpecError(
            "dtype",
            name,
            f"{path} was saved for {saved.dtype}, which torchao's tensors keep",
        )
    if device.type != saved.device:
        raise SpecError(
            "device",
            device.type,
            f"{path} was packed by torchao for {saved.device}: quantize it anew here",
        )
    scheme = Scheme.parse(saved.scheme)
    config_for(scheme, kernels="torchao", device=device, dtype=dtype)

"""What a saved folder's `config.json` says of `model.pth`, the field `llama_perf`.

Knows whether a device can use such weights, and not how they are written or read.
"""

from pathlib import Path
from typing import Final, Literal

import torch

from llama_perf.checkpoints.archive import content
from llama_perf.checkpoints.config import read_json
from llama_perf.errors import SpecError, WeightsError
from llama_perf.files import is_absent
from llama_perf.llama.transformer import Origin
from llama_perf.quantize.registry import config_for
from llama_perf.rows.choices import DEVICES, DTYPE_TOKENS, check_choice
from llama_perf.rows.modules import ModuleFilter
from llama_perf.rows.schemes import OWN, Scheme
from llama_perf.strict_json import from_plain, record
from llama_perf.words import shown

KEY = "llama_perf"
CONTENT_KEY = "llama_perf_content"
"""The checksum of `model.pth`. Older versions refuse a record with one more field."""
FORMAT: Final = 5
"""Counts up whenever the stored tensors change their layout or their classes."""
SAVED_KERNELS = ("native", "torchao")
"""The kernels whose weights are saved; those of other libraries are not."""


@record
class Saved:
    """The field `llama_perf` of a saved `config.json`.

    Only files of the format `FORMAT` are read, since pickles name classes by module.
    `scheme` and `kernels` are None where the weights are not quantized; `dtype` is that
    of the activations, `device` the one the weights were packed on; `modules` are the
    globs of the linears that were quantized, None for all.
    """

    format: Literal[5]
    weights: str
    scheme: str | None
    kernels: str | None
    dtype: str
    device: str
    torch: str | None
    torchao: str | None
    llama_perf: str | None
    modules: str | None = None

    def __post_init__(self) -> None:
        if self.scheme is not None:
            scheme = Scheme.parse(self.scheme, field="scheme", kernels=self.kernels)
            if scheme.kernels == (OWN,):
                reason = "a file may not ask for a package's code to be imported"
                raise SpecError("scheme", self.scheme, reason)
        ModuleFilter.parse(self.modules)
        kernels: tuple[str | None, ...] = SAVED_KERNELS if self.scheme else (None,)
        check_choice("kernels", self.kernels, kernels)
        check_choice("dtype", self.dtype, tuple(DTYPE_TOKENS))
        check_choice("device", self.device, DEVICES)

    @property
    def origin(self) -> Origin:
        """The origin of a model with these weights."""
        return Origin(
            weights=self.weights,
            scheme=self.scheme,
            kernels=self.kernels,
            modules=self.modules,
        )


def read_saved(folder: Path) -> Saved | None:
    """The record in the `config.json` in `folder`, or None; raises WeightsError."""
    path = folder / "config.json"
    if is_absent(path) or (fields := read_json(path).get(KEY)) is None:
        return None
    source = f"{path}: {KEY}"
    number = fields.get("format") if isinstance(fields, dict) else None
    # First, since the record of another format may have other fields.
    if isinstance(number, int) and number != FORMAT:
        raise WeightsError(
            f"{source}: format {shown(number)} is not allowed; allowed: {FORMAT};"
            " quantize and save the model again with this llama-perf"
        )
    return from_plain(Saved, fields, source=source, error=WeightsError)


def check_content(path: Path) -> None:
    """Raise WeightsError unless a file is the one that was saved with `config.json`.

    A folder of an older llama-perf does not say which it was.
    """
    said = read_json(path.with_name("config.json")).get(CONTENT_KEY)
    if said is not None and said != content(path):
        raise WeightsError(
            f"{path}: it is not the file that was saved with the config.json beside it"
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
    if (name := str(dtype).removeprefix("torch.")) != saved.dtype:
        reason = f"{path} was saved for {saved.dtype}, which torchao's tensors keep"
        raise SpecError("dtype", name, reason)
    if device.type != saved.device:
        reason = f"{path} was packed by torchao for {saved.device}: quantize it anew"
        raise SpecError("device", device.type, f"{reason} here")
    scheme = Scheme.parse(saved.scheme)
    config_for(scheme, kernels="torchao", device=device, dtype=dtype)

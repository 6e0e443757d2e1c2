"""gemlite's schemes, by the operator that its own linear layer calls. CUDA only.

    int8wo, float8wo      its `A16W8_INT8` and `A16W8_FP8`: a scale for each row
    int8dq, float8dq-row  its `A8W8_INT8_dynamic` and `A8W8_FP8_dynamic`: activations
                          are rounded too, with a scale for each token
    int4wo, uintx         its `A16Wn` of 1, 2, 4 or 8 bits: it packs codes that others
                          found, w = (c - z) * s, here those of `grouped`

Written against version 0.6. It tunes its kernels when they first run, and what it
finds differs from process to process: what a process tuned is kept beside compiled
code, and later ones use it.
"""

import atexit
import os
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchao.core.config import AOBaseConfig

from llama_perf.devices.device import device_of, package_version
from llama_perf.errors import NotRunnable, SpecError
from llama_perf.files import cache_folder
from llama_perf.quantize.grouped import codes_of_groups
from llama_perf.quantize.libraries import import_library
from llama_perf.quantize.library_tensor import LibraryConfig, LibraryTensor
from llama_perf.quantize.quantized_tensor import QuantizedTensor
from llama_perf.quantize.registry import register
from llama_perf.quantize.torchao_schemes import check_float8
from llama_perf.rows.schemes import Scheme

LIBRARY = "gemlite"
BITS = (1, 2, 4, 8)
"""The bits of codes that it packs."""
LEAST_GROUP = 16
_HELPERS = {
    "int8wo": "A16W8_INT8",
    "float8wo": "A16W8_FP8",
    "int8dq": "A8W8_INT8_dynamic",
    "float8dq-row": "A8W8_FP8_dynamic",
}
_WORD_BITS = 32
# Where its `get_meta_args` has them.
_NUM_BITS, _PER_WORD, _GROUP_MODE = 1, 4, 10
# w = c * scale + zero, as it keeps groups; else a group is a row: (c - zero) * scale.
_ADDED = 4


class GemliteWeight(LibraryTensor):
    """Its tensors, and the numbers that its operator takes with them.

    `codes` are (K, N), or words (K / codes of a word, N); `scale` and `zero` are
    (groups, N), `zero` without values where it has none.
    """

    library = LIBRARY
    tensor_data_names: ClassVar = ["codes", "scale", "zero", "meta_scale"]
    tensor_attribute_names: ClassVar = [
        "numbers",
        *QuantizedTensor.tensor_attribute_names,
    ]
    zero: Tensor
    meta_scale: Tensor
    numbers: tuple[int, ...]

    def product(self, x: Tensor) -> Tensor:
        parts = [self.codes, self.scale, self.zero, self.meta_scale]
        out: Tensor = torch.ops.gemlite.forward_functional.default(
            x, None, parts, list(self.numbers)
        )
        return out

    def dequantize(self) -> Tensor:
        codes, scale = self._codes().float(), self._of_columns(self.scale)
        # A row's weights have no zero, or none that is added.
        zero = self._of_columns(self.zero) if self.zero.numel() else codes.new_zeros(1)
        added = self.numbers[_GROUP_MODE] == _ADDED
        wide = codes * scale + zero if added else (codes - zero) * scale
        out: Tensor = wide.T.to(self.activation_dtype)
        return out

    def _of_columns(self, part: Tensor) -> Tensor:
        """What each group has, (groups, N), for each weight of it: (K, N)."""
        return part.float().repeat_interleave(self.columns // len(part), 0)

    def _codes(self) -> Tensor:
        """The codes (K, N), one in each element."""
        if self.numbers[_PER_WORD] == 1:
            return self.codes
        bits = self.numbers[_NUM_BITS]
        shifts = torch.arange(0, _WORD_BITS, bits, device=self.codes.device)
        # A shift keeps the sign, which the mask drops.
        words = self.codes[:, None] >> shifts[:, None]
        codes: Tensor = (words & (2**bits - 1)).flatten(0, 1)
        return codes


@register(*_HELPERS, kernels=LIBRARY)
def eight_bits(
    scheme: Scheme, device: torch.device, dtype: torch.dtype
) -> AOBaseConfig:
    """Weights in int8 or float8 e4m3 with one scale for each output channel."""
    _check(scheme, device, dtype)
    if "float8" in scheme.family:
        check_float8(f"gemlite's {scheme.name}", device)
    helper = _HELPERS[scheme.family]
    return LibraryConfig(partial(_by_helper, scheme=scheme, helper=helper))


@register("int4wo", "uintx", kernels=LIBRARY)
def packed_bits(
    scheme: Scheme, device: torch.device, dtype: torch.dtype
) -> AOBaseConfig:
    """Weights of few bits with a scale and a zero for each group along K."""
    if (scheme.bits or 4) not in BITS:
        raise NotRunnable(
            f"gemlite's {scheme.name} is not built; allowed there:"
            f" {', '.join(map(str, BITS))} bits"
        )
    if scheme.group_size is None or scheme.group_size < LEAST_GROUP:
        raise NotRunnable(
            f"gemlite's {scheme.name} is not built; allowed there: groups of"
            f" {LEAST_GROUP} or more"
        )
    _check(scheme, device, dtype)
    return LibraryConfig(partial(_by_codes, scheme=scheme))


def _check(scheme: Scheme, device: torch.device, dtype: torch.dtype) -> None:
    if device.type != "cuda":
        raise NotRunnable(f"gemlite's {scheme.name} needs device 'cuda'")
    if dtype == torch.float32:
        raise NotRunnable(
            f"gemlite's {scheme.name} takes bfloat16 or float16, not float32"
        )
    load()


@cache
def load() -> ModuleType:
    """Import gemlite with what earlier processes tuned; raises NotRunnable."""
    library = import_library(LIBRARY)
    version = package_version(LIBRARY)
    name = f"{device_of('cuda').key}-{version}-{torch.__version__}.json"
    path = cache_folder() / LIBRARY / name
    if path.is_file():
        library.load_config(str(path), print_error=False)
    atexit.register(_keep, library, path)
    return library


def _keep(library: Any, path: Path) -> None:
    """Write what this process tuned; without room on the disk it is tuned again."""
    own = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        library.cache_config(str(own))
        own.replace(path)


def _by_helper(weight: Tensor, *, scheme: Scheme, helper: str) -> GemliteWeight:
    made = getattr(load().helper, helper)(device=weight.device, dtype=weight.dtype)
    return _weight(made.from_weights, scheme, weight, weight)


def _by_codes(weight: Tensor, *, scheme: Scheme) -> GemliteWeight:
    codes, scale, zero = codes_of_groups(weight, scheme, dtype=weight.dtype)
    made = load().helper.A16Wn(device=weight.device, dtype=weight.dtype)
    return _weight(
        made.from_weights,
        scheme,
        weight,
        codes,
        scale,
        zero,
        scheme.bits or 4,
        scheme.group_size,
    )


def _weight(
    from_weights: Any, scheme: Scheme, weight: Tensor, *arguments: object
) -> GemliteWeight:
    """What `from_weights` of one of gemlite's helpers makes."""
    try:
        linear = from_weights(*arguments)
    except NotImplementedError as error:
        raise SpecError("quantization", scheme.name, f"gemlite: {error}") from None
    parts = [part.detach() for part in linear.get_tensor_args()]
    numbers = tuple(map(int, linear.get_meta_args()))
    return GemliteWeight(*parts, numbers, *weight.shape, weight.dtype)

"""How large a scheme that is not ours makes a weight: tried on a few rows of one.

Nothing is known of such a scheme but what it does.
"""

import math
from functools import cache
from typing import Any

import torch
from torch import nn

from llama_perf.devices.device import check_device
from llama_perf.errors import NotRunnable
from llama_perf.llama.transformer import tensor_bytes
from llama_perf.quantize.apply import make_quantizer
from llama_perf.quantize.plugins import installed_scheme
from llama_perf.rows.schemes import OWN, Scheme

# The bytes of any number of rows follow from those of these: some do not depend on it.
# Formats pad rows to at most 128.
_PROBE_ROWS = (128, 256)


def own_bytes(
    scheme: str, rows: int, columns: int, dtype: torch.dtype, device: str
) -> int | None:
    """Bytes of a weight (rows, columns); None where the scheme cannot be tried.

    It is tried on `device` where that is here, else on the CPU, unless its package
    says its size. Raises UserError where that package cannot be imported.
    """
    installed = installed_scheme(scheme)
    if installed is not None and installed.bytes_per_weight is not None:
        return math.ceil(rows * columns * installed.bytes_per_weight)
    few, more = (_tried(scheme, count, columns, dtype, device) for count in _PROBE_ROWS)
    if few is None or more is None:
        return None
    first, second = _PROBE_ROWS
    return few + -(-(more - few) * (rows - first) // (second - first))


@cache
def _tried(
    scheme: str, rows: int, columns: int, dtype: torch.dtype, device: str
) -> int | None:
    kernels = Scheme.parse(scheme, kernels=OWN).kernels[0]
    try:
        target = check_device(device)
    except NotRunnable:
        target = torch.device("cpu")
    on: dict[str, Any] = {"device": target, "dtype": dtype}
    # The numbers that later weights are made of stay what they are.
    with torch.random.fork_rng(devices=[]):
        try:
            quantize = make_quantizer(scheme, kernels=kernels, **on)
            linear = nn.Linear(columns, rows, bias=False, **on).requires_grad_(False)
            quantize(nn.ModuleDict({"probe": linear}), "probe")
        except (Exception, SystemExit):  # the row itself says what breaks
            return None
    return tensor_bytes(linear.weight)

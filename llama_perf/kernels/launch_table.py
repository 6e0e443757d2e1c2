"""Launches of fused products that were timed on a GPU, by GPU and shape.

`llama-perf tune` writes `launch_table.json`, in this folder. A launch in it is used;
every other GPU and shape follows the rule of `few_launch`. Knows no Triton.
"""

from collections.abc import Mapping
from dataclasses import field, replace
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from pydantic import PositiveInt

from llama_perf.errors import RecordError
from llama_perf.files import is_absent, write_atomically
from llama_perf.kernels.weight import Packed
from llama_perf.strict_json import read_json, record, to_json

FILE = Path(__file__).with_name("launch_table.json")
BLOCK_U = (4, 8, 16, 32, 64, 128, 256)
WARPS = (1, 2, 4, 8)


@record
class Choice:
    """Units of eight columns a program takes at a time, parts of the columns, warps.

    `us` is the time of one product, `rule_us` that of the rule's launch, measured in
    the same run, both in microseconds.
    """

    block_u: int
    splits: PositiveInt
    warps: int
    stages: PositiveInt
    us: float
    rule_us: float


@record
class LaunchTable:
    """Choices by device key and `launch_key`."""

    kind: Literal["llama-perf launches"] = "llama-perf launches"
    schema_version: Literal[1] = 1
    devices: dict[str, dict[str, Choice]] = field(default_factory=dict)


def launch_key(
    weight: Packed, tokens: int, activations: torch.dtype, *, weights: int
) -> str:
    """A product's name in the table: format, padded tokens, shape, weights at once."""
    padded = 1 << (tokens - 1).bit_length()
    dtype = str(weight.codes.dtype).removeprefix("torch.")
    kind = f"{dtype}-f{weight.format}-b{weight.bits}-d{weight.decode}"
    kind += f"-g{weight.group}-z{weight.zero_kind}"
    kind += "-dynamic" if weight.dynamic else ""
    kind += f"-x{str(activations).removeprefix('torch.')}"
    return f"{kind}.m{padded}.n{weight.rows}.k{weight.columns}.x{weights}"


def read(path: Path = FILE) -> LaunchTable:
    """The table, an empty one where there is no file; raises RecordError."""
    if is_absent(path):
        return LaunchTable()
    table = read_json(LaunchTable, path)
    for device, choices in table.devices.items():
        for key, choice in choices.items():
            for name, allowed in (("block_u", BLOCK_U), ("warps", WARPS)):
                if (value := getattr(choice, name)) not in allowed:
                    where = f"{path}: devices.{device}.{key}.{name}"
                    raise RecordError(f"{where}: {value}; allowed: {allowed}")
    return table


def keep(device: str, choices: Mapping[str, Choice], path: Path = FILE) -> None:
    """Put a device's choices into the file; those of other shapes stay."""
    table = read(path)
    known = {**table.devices.get(device, {}), **choices}
    devices = {**table.devices, device: dict(sorted(known.items()))}
    write_atomically(
        path, to_json(replace(table, devices=dict(sorted(devices.items()))))
    )


@cache
def chosen(device: str, key: str) -> Choice | None:
    """The choice for a product on that device, None where there is none."""
    return read().devices.get(device, {}).get(key)

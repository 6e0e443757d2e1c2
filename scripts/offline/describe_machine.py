"""Describe a machine with a card and measure its ceiling: the first step of a check.

The ceiling proves Triton's compiler, dependent launches, captures and the clock at
once.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from llama_perf.devices.device import default_device
from llama_perf.measure.device_ceiling import measure_ceiling
from llama_perf.measure.environment import collect
from llama_perf.measure.toolchain import triton_problem


def main(file: str) -> None:
    """Print the description and write it to `file` as JSON, each part when known."""
    device = torch.device(default_device())
    description: dict[str, object] = {
        "environment": asdict(collect(device)),
        "cores": os.cpu_count(),
        "cuda_kernels": triton_problem() or "ok",
        "triton_cache": os.environ.get("TRITON_CACHE_DIR"),
    }
    _write(Path(file), description)
    ceiling = measure_ceiling(device)
    description["ceiling"] = asdict(ceiling)
    _write(Path(file), description)
    print(f"ceiling: {ceiling.summary}")


def _write(path: Path, description: dict[str, object]) -> None:
    path.write_text(json.dumps(description, indent=2), encoding="utf-8")
    for name, value in description.items():
        print(f"{name}: {value}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

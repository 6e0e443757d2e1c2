"""What a machine with a card is, and what bounds a step there: its first check.

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
    """Print the findings and write them to `file`, as JSON, as they come."""
    device = torch.device(default_device())
    found: dict[str, object] = {
        "environment": asdict(collect(device)),
        "cores": os.cpu_count(),
        "cuda_kernels": triton_problem() or "ok",
        "triton_cache": os.environ.get("TRITON_CACHE_DIR"),
    }
    _write(Path(file), found)
    ceiling = measure_ceiling(device)
    found["ceiling"] = asdict(ceiling)
    _write(Path(file), found)
    print(f"ceiling: {ceiling.summary}")


def _write(path: Path, found: dict[str, object]) -> None:
    path.write_text(json.dumps(found, indent=2), encoding="utf-8")
    for name, value in found.items():
        print(f"{name}: {value}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

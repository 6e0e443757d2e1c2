"""Describe a machine with a card and measure its ceiling: the first step of a check.

The ceiling proves Triton's compiler, dependent launches, captures and the clock at
once.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from llama_perf.devices.device import KINDS, run_device
from llama_perf.measure.device_ceiling import measure_ceiling
from llama_perf.measure.environment import collect, triton_problem


def _parts() -> Iterator[tuple[str, object]]:
    device = run_device(KINDS)
    yield "environment", asdict(collect(device))
    yield "cores", os.cpu_count()
    yield "cuda_kernels", triton_problem() or "ok"
    yield "triton_cache", os.environ.get("TRITON_CACHE_DIR")
    ceiling = measure_ceiling(device)
    yield "ceiling", asdict(ceiling)
    print(f"ceiling: {ceiling.summary}")


if __name__ == "__main__":
    description = {}
    for name, value in _parts():
        # Each part is there when it is known, whatever comes of the next.
        description[name] = value
        print(f"{name}: {value}", flush=True)
        text = json.dumps(description, indent=2)
        Path(sys.argv[1]).write_text(text, encoding="utf-8")

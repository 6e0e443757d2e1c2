"""Launches that autoquant times for a fused row, compiled for a GPU and not run.

As a program, since Triton takes one target a process: for a layer of Llama-2-7B it
prints, as JSON, the kernel and grid of every candidate's launch, by how it is timed.
"""

import json

import torch

from llama_perf.quantize.autoquant import timing
from llama_perf.rows.schemes import AUTOQUANT
from scripts.studies.compile_only import compile_only

GATE = timing.Product(tokens=1, rows=11008, columns=4096)


def main() -> None:
    launched = compile_only(90)
    timed: dict[str, dict[str, list[object]]] = {"fused": {}, "fused gate": {}}
    hows: tuple[timing.How, ...] = ("fused", "fused gate")
    for how in hows:
        for name in AUTOQUANT["autoquant-int4"]:
            launched.clear()
            timing.launch_once(GATE, name, dtype=torch.bfloat16, how=how)
            timed[how][name] = [(launch.kernel, launch.grid) for launch in launched]
    print(json.dumps(timed))


if __name__ == "__main__":
    main()

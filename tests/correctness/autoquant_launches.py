"""What autoquant times for a fused row, compiled for a card and not run.

As a program, since Triton takes one target a process: for a layer of Llama-2-7B it
prints, as JSON, the kernel and the grid of each candidate's launch, by how it is timed.
"""

from __future__ import annotations

import json

import torch

from llama_perf.autoquant import timing
from llama_perf.autoquant.uses import Product
from llama_perf.kernels.compile_only import compile_only
from llama_perf.scheme import AUTOQUANT

META = torch.device("meta")
GATE = Product(tokens=1, rows=11008, columns=4096)


def main() -> None:
    launched = compile_only(90)
    found: dict[str, dict[str, list[object]]] = {"fused": {}, "fused gate": {}}
    hows: tuple[timing.How, ...] = ("fused", "fused gate")
    for how in hows:
        linear = timing._linear(how, GATE, META)
        x = torch.empty((1, GATE.columns), dtype=torch.bfloat16, device=META)
        for name in AUTOQUANT["autoquant-int4"]:
            copies = timing._copies(
                name, GATE, dtype=torch.bfloat16, device=META, how=how
            )
            launched.clear()
            timing._Pass(x, copies[:1], linear)()
            found[how][name] = [(each.kernel, each.grid) for each in launched]
    print(json.dumps(found))


if __name__ == "__main__":
    main()

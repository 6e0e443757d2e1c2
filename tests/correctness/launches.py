"""The launches of a fused step, compiled for a card and not run: see `compile_only`.

As a program, since Triton takes one target a process:

    python launches.py MODEL SCHEME CAPABILITY MULTIPROCESSORS

prints those of one step of a model of two layers, as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from functools import cache
from typing import Any


@cache
def launches(
    model: str, scheme: str, *, capability: int = 90, multiprocessors: int = 132
) -> list[dict[str, Any]]:
    """Of a captured step of decoding, in their order, from a process of its own."""
    words = [model, scheme, str(capability), str(multiprocessors)]
    done = subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(model: str, scheme: str, capability: str, multiprocessors: str) -> None:
    import torch

    from llama_perf.assemble import build_model
    from llama_perf.engine import Engine
    from llama_perf.kernels.compile_only import compile_only
    from llama_perf.model.config import preset
    from llama_perf.quantize.apply import make_quantizer
    from llama_perf.weights.synthetic import SyntheticWeights

    class Shapes(SyntheticWeights):
        def _tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
            del name
            return torch.empty(shape, dtype=self._dtype, device=self._device)

    launched = compile_only(int(capability), multiprocessors=int(multiprocessors))
    meta, dtype = torch.device("meta"), torch.bfloat16
    quantizer = None
    if scheme != "none":
        card = torch.device("cuda")
        quantizer = make_quantizer(scheme, kernels="native", device=card, dtype=dtype)
    config = replace(preset(model), n_layers=2)
    reader = Shapes(config, dtype=dtype, device=meta)
    with torch.no_grad():
        built = build_model(reader, dtype=dtype, device=meta, quantizer=quantizer)
        engine = Engine(built, cache_size=256, fused=True)
        token = torch.zeros((1, 1), dtype=torch.int64, device=meta)
        engine.decode(token, torch.zeros(1, dtype=torch.int64, device=meta))
    print(json.dumps([asdict(each) for each in launched]))


if __name__ == "__main__":
    main(*sys.argv[1:])

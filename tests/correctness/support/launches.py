r"""The launches of fused generations, compiled for a card and not run: `compile_only`.

As a program, since Triton takes one target a process:

    python -m tests.correctness.support.launches \
        MODEL SCHEME CAPABILITY MULTIPROCESSORS TEMPERATURE

prints those of the second of two generations of a model of two layers, as JSON. What
would be captured is stored and run at every replay. With `autoquant` as its only word
it prints those that autoquant times for a fused row.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[3]
Launches = list[dict[str, Any]]
PROMPT = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """Kernels and torch's operators: of the prompt's graph, of a step's, of neither."""

    first: Launches
    step: Launches
    outside: Launches


def run(*words: object, **environment: str) -> str:
    """What this program prints for those words, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, *map(str, words)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@cache
def generation(
    model: str,
    scheme: str = "none",
    *,
    capability: int = 90,
    multiprocessors: int = 132,
    temperature: float = 0.8,
) -> Generation:
    """The second of two of a captured row."""
    printed = run(model, scheme, capability, multiprocessors, temperature)
    return Generation(**json.loads(printed.splitlines()[-1]))


class _Operators(TorchDispatchMode):
    """Notes torch's operators that launch something: no views, no allocations."""

    def __init__(self, noted: list[Any]) -> None:
        # torch's own has no types.
        super().__init__()  # type: ignore[no-untyped-call]
        self._noted = noted

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        name = func.overloadpacket.__name__
        returned = [value.alias_info for value in func._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in returned)
        if not view and "empty" not in name and name != "detach":
            self._noted.append(name)
        return func(*args, **(kwargs or {}))


def main(
    model: str, scheme: str, capability: str, multiprocessors: str, temperature: str
) -> None:
    """Two generations on the meta device; the second is printed."""
    from llama_perf.llama.options import Sampling
    from llama_perf.rows.spec import RowSpec
    from scripts.offline.compile_rows import (
        META,
        Uncaptured,
        meta_engine,
        without_graphs,
    )
    from scripts.studies.compile_only import compile_only

    card = {"multiprocessors": int(multiprocessors)}
    launched: list[Any] = compile_only(int(capability), **card)
    graphs: list[Launches] = []

    class Replayed(Uncaptured):
        def replay(self) -> None:
            before = len(launched)
            super().replay()
            graphs.append([_as_dict(launch) for launch in launched[before:]])
            del launched[before:]

    without_graphs(Replayed)
    quantization = None if scheme == "none" else scheme
    row = RowSpec(model=model, quantization=quantization, fused=True, capture=True)
    engine = meta_engine(row, cache_size=256)
    sampling = Sampling(temperature=float(temperature))
    prompt = torch.zeros((1, PROMPT), dtype=torch.int64, device=META)
    with _Operators(launched):
        for _ in range(2):
            launched.clear()
            graphs.clear()
            # The last operator, which joins the result, comes when all is done.
            list(engine.stream(prompt, max_new_tokens=2, sampling=sampling))
    first, then = graphs
    outside = [_as_dict(launch) for launch in launched]
    print(json.dumps(asdict(Generation(first=first, step=then, outside=outside))))


def timed_by_autoquant() -> None:
    """By how a layer of Llama-2-7B is timed: each candidate's kernels and grids."""
    from llama_perf.quantize.autoquant import timing
    from llama_perf.rows.schemes import AUTOQUANT
    from scripts.studies.compile_only import compile_only

    launched = compile_only(90)
    layer: Any = {"rows": 11008, "columns": 4096, "dtype": torch.bfloat16}
    timed: dict[str, dict[str, list[object]]] = {"fused": {}, "fused gate": {}}
    hows: tuple[timing.How, ...] = ("fused", "fused gate")
    for how in hows:
        gate = timing.Product(tokens=1, how=how, **layer)
        for name in AUTOQUANT["autoquant-int4"]:
            launched.clear()
            timing.launch_once(gate, name)
            timed[how][name] = [(launch.kernel, launch.grid) for launch in launched]
    print(json.dumps(timed))


def _as_dict(launch: Any) -> dict[str, Any]:
    return {"kernel": launch} if isinstance(launch, str) else asdict(launch)


if __name__ == "__main__":
    if sys.argv[1:] == ["autoquant"]:
        timed_by_autoquant()
    else:
        main(*sys.argv[1:])

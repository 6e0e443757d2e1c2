"""The launches of fused generations, compiled for a card and not run: `compile_only`.

Triton takes one target a process, so each target has a process of its own. It compiles
all generations that are asked of it.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llama_perf.llama.options import Sampling
from llama_perf.quantize.autoquant import timing
from llama_perf.rows.schemes import AUTOQUANT
from llama_perf.rows.spec import RowSpec

Launches = list[Any]
"""Of `compile_only.Launched`, whose module needs Triton."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """What a kernel was compiled to."""

    kernel: str
    ptx: str
    cubin: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """Kernels and torch's operators: of the prompt's graph, of a step's, of neither.

    `code` is that of all kernels by their hash.
    """

    first: Launches
    step: Launches
    outside: Launches
    code: dict[str, Code]


def new_process() -> ProcessPoolExecutor:
    """One that imports all anew."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


_processes: dict[int, ProcessPoolExecutor] = {}


def end_processes() -> None:
    """Those that compiled."""
    for process in _processes.values():
        process.shutdown()
    _processes.clear()


def in_a_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns in a new process."""
    with new_process() as process:
        return process.submit(work, *arguments).result()


@cache
def generation(
    model: str, *, capability: int = 90, multiprocessors: int = 132, **fields: Any
) -> Generation:
    """The second of two generations of a captured row, whose model has two layers."""
    fields = {"fused": True, "capture": True, "cache_size": 256} | fields
    row = RowSpec(model=model, **fields)
    if capability not in _processes:
        _processes[capability] = new_process()
    process = _processes[capability]
    return process.submit(_generate, row, capability, multiprocessors).result()


# What launches in a process that compiles: a compiled kernel goes on noting it there.
_launched: Launches = []


def _generate(row: RowSpec, capability: int, multiprocessors: int) -> Generation:
    from triton.runtime import JITFunction

    from llama_perf.kernels.triton import launch
    from scripts.offline import compile_rows
    from scripts.studies.compile_only import Launched, compile_only

    launched = _launched
    compile_only(capability, multiprocessors=multiprocessors, launches=launched)
    launch.multiprocessors.cache_clear()
    graphs: list[Launches] = []
    code: dict[str, Code] = {}
    run = JITFunction.run

    def run_and_keep(kernel: Any, *arguments: Any, **options: Any) -> Any:
        made = run(kernel, *arguments, **options)
        parts = {part: made.asm[part] for part in ("ptx", "cubin")}
        code[made.hash] = Code(kernel=made.name, **parts)
        return made

    class Operators(TorchDispatchMode):
        """Notes torch's that launch something: no views, no allocations."""

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            del types
            name = func.overloadpacket.__name__
            returned = [value.alias_info for value in func._schema.returns]
            view = any(alias is not None and not alias.is_write for alias in returned)
            if not view and "empty" not in name and name != "detach":
                launched.append(Launched(name, (), dependent=False, together=False))
            return func(*args, **(kwargs or {}))

    def captured(work: Callable[[], None], *_generator: object) -> SimpleNamespace:
        """What would be captured is stored and run at every replay."""

        def replay() -> None:
            before = len(launched)
            work()
            graphs.append(launched[before:])
            del launched[before:]

        return SimpleNamespace(replay=replay)

    compile_rows.without_graphs(captured)
    engine = compile_rows.meta_engine(row)
    prompt = torch.zeros((1, 5), dtype=torch.int64, device=compile_rows.META)
    sampling = Sampling(temperature=row.temperature)
    keeping = patch.object(JITFunction, "run", run_and_keep)
    with keeping, Operators():  # type: ignore[no-untyped-call]  # torch's has no types
        for _ in range(2):
            launched.clear()
            graphs.clear()
            # The last operator, which joins the result, comes when all is done.
            list(engine.stream(prompt, max_new_tokens=2, sampling=sampling))
    first, step = graphs
    return Generation(first=first, step=step, outside=launched, code=code)


def timed_by_autoquant() -> dict[str, dict[str, Launches]]:
    """By how a layer of Llama-2-7B is timed: what each candidate launches.

    Compiles for sm_90 from then on: for `in_a_process`.
    """
    from scripts.studies.compile_only import compile_only

    launched = compile_only(90)
    layer: Any = {"rows": 11008, "columns": 4096, "dtype": torch.bfloat16}
    timed: dict[str, dict[str, Launches]] = {"fused": {}, "fused gate": {}}
    hows: tuple[timing.How, ...] = ("fused", "fused gate")
    for how in hows:
        gate = timing.Product(tokens=1, how=how, **layer)
        for name in AUTOQUANT["autoquant-int4"]:
            launched.clear()
            timing.launch_once(gate, name)
            timed[how][name] = launched.copy()
    return timed

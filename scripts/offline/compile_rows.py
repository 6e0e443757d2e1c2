"""Compile the Triton kernels that rows launch on a card, without one.

    export TRITON_CACHE_DIR=DIR
    python -m scripts.offline.compile_rows 90 1/2 reference mine.toml

Each row's model is built with two layers on the meta device, at its full width, and
generates a few tokens under `compile_only`; what is compiled stays in
Triton's cache. A process of its own compiles for one target. Reads no weights.
"""

import operator
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from llama_perf.checkpoints.load import parse_dtype
from llama_perf.kernels.triton.launch import launch_count
from llama_perf.llama import decode_step
from llama_perf.llama.attention import VisiblePositions
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import EngineOptions, Sampling
from llama_perf.llama.presets import preset
from llama_perf.llama.transformer import Transformer
from llama_perf.measure.value_check import DECODED
from llama_perf.quantize.apply import make_quantizer
from llama_perf.quantize.autoquant.choose import candidates, products
from llama_perf.quantize.autoquant.timing import launch_once
from llama_perf.rows.schemes import AUTOQUANT, UNQUANTIZED
from llama_perf.rows.selection import load_file, load_set
from llama_perf.rows.spec import RowSpec
from scripts.offline.install import compiler
from scripts.studies.compile_only import LaunchingOperators, compile_only

META = torch.device("meta")


def kernel_rows(sets: Iterable[str]) -> list[RowSpec]:
    """Rows of `sets`, names or files, that launch kernels of this project.

    Rows that launch the same kernels are there once.
    """
    files = (
        load_file(Path(name)) if name.endswith(".toml") else load_set(name)
        for name in sets
    )
    native = (
        # An operator is launched alike in compiled code.
        replace(row, compile=False, compile_prefill=False, num_samples=1)
        for row in chain.from_iterable(files)
        if (row.device, row.kernels) == ("cuda", "native")
    )
    return list({row.id: row for row in native}.values())


def meta_engine(row: RowSpec) -> Engine:
    """The engine of an eager row whose model has two layers and no values."""
    dtype, card, scheme = parse_dtype(row.dtype), torch.device("cuda"), row.quantization
    # Alike layers launch alike; the first one's input is the embedding.
    with META:
        model = Transformer(preset(row.model).first_layers(2).of_rank(row.ranks))
    model.to(dtype).requires_grad_(False).eval()
    if scheme is not None:
        quantize = make_quantizer(scheme, kernels="native", device=card, dtype=dtype)
        quantize(model, "model")
    return Engine(model, EngineOptions.of(row))


def compile_row(row: RowSpec) -> None:
    """Generate as a row does and check its values, with no values there."""
    if row.quantization in AUTOQUANT:
        # It times its candidates, and may be any one of them.
        for product in products(row, preset(row.model).of_rank(row.ranks)):
            for name in candidates(row.quantization, product.columns):
                launch_once(product, name)
        for scheme in AUTOQUANT[row.quantization]:
            chosen = None if scheme == UNQUANTIZED else scheme
            compile_row(replace(row, quantization=chosen))
        return
    engine = meta_engine(row)
    shape = (row.batch_size, row.prompt_length)
    prompt = torch.zeros(shape, dtype=torch.int64, device=META)
    lengths = prompt.new_zeros(row.batch_size) if row.ragged else None
    if row.fill:
        engine.fill(torch.zeros((row.batch_size, row.fill), dtype=torch.int64))
    with torch.no_grad():
        engine.observe(
            prompt,
            max_new_tokens=2,
            observed=2,
            lengths=lengths,
            sampling=Sampling(temperature=row.temperature, top_k=row.top_k),
        )
        # As the check does: the text at once, by the model's modules.
        end = row.fill + row.prompt_length + min(DECODED, row.max_new_tokens - 1)
        text = prompt.new_zeros((row.batch_size, end - row.fill))
        positions = torch.arange(row.fill, end, device=META)
        visible = VisiblePositions(end=end)
        x = engine.model.hidden(text, positions, caches=engine.caches, visible=visible)
        engine.model.head(x[:, -1 - DECODED :])


def uncaptured(work: Callable[[], None], *_generator: object) -> SimpleNamespace:
    """A stand-in for a CUDA graph: each replay runs `work`."""
    return SimpleNamespace(replay=work)


def without_graphs(captured: Callable[..., SimpleNamespace] = uncaptured) -> None:
    """Run steps instead of capturing them; `captured` then makes the graph."""
    replaced: Any = decode_step
    replaced.warm_up, replaced.capture_graph = operator.call, captured


def main(capability: str, part: str, *sets: str) -> None:
    """Compile for sm_`capability` what the rows of part I/N of `sets` launch.

    Prints the rows, and the name of the compiler.
    """
    compile_only(int(capability))
    without_graphs()
    room = torch.empty(1, dtype=torch.int32, device=META)
    # A card before sm_90 has no dependent launches.
    for dependent in (False, True) if int(capability) >= 90 else (False,):
        launch_count(room, dependent=dependent)
    number, parts = map(int, part.split("/"))
    with LaunchingOperators():  # type: ignore[no-untyped-call]  # torch's has no types
        for row in kernel_rows(sets)[number - 1 :: parts]:
            print(row.id, flush=True)
            compile_row(row)
    print(compiler())


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The choice: for each shape of linear, the candidate with the least time.

The time of a candidate is that of all products with the shape's linears in one
generation, each counted as often as it occurs (torchao's autoquant, which did so until
0.16). Knows no weights.

Times are kept in a file between runs. A time holds for one machine, one set of library
versions and one state of the kernels' source; anything else is timed anew.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Literal

import torch

from llama_perf.devices.device import fingerprint
from llama_perf.errors import RecordError, UserError
from llama_perf.files import cache_folder, is_absent, write_atomically
from llama_perf.llama.compiler import source_hash
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.engine import PREFILL_CHUNK
from llama_perf.quantize.autoquant.timing import How, Product, time_product
from llama_perf.results.measurement import LinearChoice
from llama_perf.rows.schemes import AUTOQUANT, UNQUANTIZED, Scheme
from llama_perf.rows.spec import FUSED_TOKENS, RowSpec
from llama_perf.strict_json import read_json, record, to_json


def choose(
    row: RowSpec,
    config: ModelConfig,
    *,
    notify: Callable[[str], None] = lambda _text: None,
    progress: Callable[[str], None] = lambda _text: None,
) -> tuple[LinearChoice, ...]:
    """The scheme of each shape of linear in an autoquant row, most expensive first.

    Times that the file at `times_path` has for this machine are used again; the others
    are taken on the row's device, in its dtype, and added to it. `progress` gets a
    text that names them, `notify` a line where all were known and one for a file that
    cannot be used.
    """
    device, path = torch.device(row.device), times_path()
    machine = machine_key(fingerprint(device))
    known: dict[str, float] = {}
    problem = ""
    try:
        known |= read_times(path).machines.get(machine, {})
    except RecordError as error:
        problem = str(error)
        notify(f"autoquant: {problem}; timing anew without it")
    uses: dict[tuple[int, int], list[tuple[int, int]]] = {}
    totals_ms: dict[tuple[int, int], dict[str, float]] = {}
    timed: set[tuple[int, int]] = set()
    for product, count in products(row, config).items():
        shape = (product.rows, product.columns)
        names = candidates(str(row.quantization), product.columns)
        keys = {name: time_key(name, product) for name in names}
        if missing := [name for name in names if keys[name] not in known]:
            timed.add(shape)
            progress(
                f"autoquant: timing {', '.join(missing)} at M = {product.tokens},"
                f" N = {product.rows}, K = {product.columns}"
            )
            us = time_product(product, missing, device)
            new = {keys[name]: us[name] for name in missing}
            known |= new
            try:
                keep_times(path, machine, new)
            except UserError as error:
                problem = str(error)
        uses.setdefault(shape, []).append((product.tokens, count))
        total_ms = totals_ms.setdefault(shape, dict.fromkeys(names, 0.0))
        for name in names:
            total_ms[name] += known[keys[name]] * count / 1e3
    if not timed:
        notify("autoquant: every time was taken before and is used again")
    elif problem:
        notify(f"autoquant: the times are not kept: {problem}")
    choices = (
        LinearChoice(
            out_features=shape[0],
            in_features=shape[1],
            products=tuple(uses[shape]),
            chosen=min(total_ms, key=total_ms.__getitem__),
            total_ms=total_ms,
            reused=shape not in timed,
        )
        for shape, total_ms in totals_ms.items()
    )
    return tuple(sorted(choices, key=lambda choice: -choice.total_ms[UNQUANTIZED]))


def candidates(autoquant: str, columns: int) -> list[str]:
    """What a scheme of AUTOQUANT may choose for a weight of so many columns."""
    return [
        name
        for name in AUTOQUANT[autoquant]
        if name == UNQUANTIZED or columns % (Scheme.parse(name).group_size or 1) == 0
    ]


def products(row: RowSpec, config: ModelConfig) -> Counter[Product]:
    """How often one generation of `row` multiplies each product.

    A prompt is cut into the engine's chunks. The head multiplies the last token of
    each sequence only.
    """
    dim, hidden = config.dim, config.intermediate_size
    # Gate and up, unless another linear has their shape too.
    is_shared = hidden in {config.qkv_size, config.vocab_size, dim}
    gate = None if is_shared else (hidden, dim)

    def product(length: int, rows: int, columns: int) -> Product:
        tokens = row.batch_size * length
        # On a CPU a fused layer has the same products as the operator.
        how: How = "eager"
        if row.fused and tokens <= FUSED_TOKENS:
            if row.device != "cpu":
                how = "fused gate" if (rows, columns) == gate else "fused"
        elif row.compile and length == 1:
            # A prompt's products are the same operators compiled or not.
            how = "compiled"
        dtype = getattr(torch, row.dtype)
        return Product(tokens=tokens, rows=rows, columns=columns, dtype=dtype, how=how)

    default = row.prompt_length if row.attention == "sdpa" else PREFILL_CHUNK
    chunk = row.prefill_chunk or default
    chunks, rest = divmod(row.prompt_length, chunk)
    passes = Counter({chunk: chunks, rest: int(rest > 0)})
    passes[1] += row.max_new_tokens - 1
    counts = Counter[Product]()
    for length, times in passes.items():
        for shape in config.linears.values():
            counts[product(length, *shape)] += times * config.n_layers
    counts[product(1, config.vocab_size, dim)] += row.max_new_tokens
    return +counts


@record
class TimesFile:
    """Microseconds by what holds them apart: the machine, then candidate and product.

    The keys are meant to be read: see `machine_key` and `time_key`.
    """

    kind: Literal["llama-perf autoquant times"] = "llama-perf autoquant times"
    schema_version: Literal[1] = 1
    machines: dict[str, dict[str, float]] = field(default_factory=dict)


def times_path() -> Path:
    """The file of all machines' times."""
    return cache_folder() / "autoquant.json"


def machine_key(fingerprint: Mapping[str, object]) -> str:
    """Device, features, threads, versions, and a hash of the kernels' source.

    `fingerprint` has the fields of `llama_perf.devices.device.fingerprint`.
    """
    return (
        "{device_key}, features {cpu_features}, {threads} threads, torch {torch},"
        " torchao {torchao}, triton {triton}, driver {driver},"
        " float32 {float32_matmul_precision}, kernels {source}"
    ).format(**fingerprint, source=source_hash())


def time_key(candidate: str, product: Product) -> str:
    """Such as "int8wo 1x4096x11008 float32 compiled": M x N x K, and how it is run."""
    shape = f"{product.tokens}x{product.rows}x{product.columns}"
    dtype = str(product.dtype).removeprefix("torch.")
    return f"{candidate} {shape} {dtype} {product.how}"


def read_times(path: Path) -> TimesFile:
    """The file, empty where there is none; raises RecordError for a damaged one."""
    return TimesFile() if is_absent(path) else read_json(TimesFile, path)


def keep_times(path: Path, machine: str, times: dict[str, float]) -> None:
    """Add `times` of `machine` to the file.

    Raises RecordError for a damaged file, WriteError where it cannot be written.
    """
    # Read again: another run may have written since.
    machines = read_times(path).machines
    machines[machine] = {**machines.get(machine, {}), **times}
    write_atomically(path, to_json(TimesFile(machines=machines)))

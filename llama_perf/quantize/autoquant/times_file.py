"""Times of products that were taken before, kept in a file between runs.

A time holds for one machine, one set of library versions and one state of the
kernels' source; anything else is timed anew. Knows neither models nor how to time.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import field
from functools import cache
from pathlib import Path
from typing import Literal

from llama_perf.errors import RecordError
from llama_perf.files import write_atomically
from llama_perf.quantize.autoquant.timing import Product
from llama_perf.strict_json import read_json, record, to_json

_PACKAGE = Path(__file__).resolve().parents[2]


@record
class TimesFile:
    """Microseconds by what holds them apart: the machine, then candidate and product.

    The keys are meant to be read: see `machine_key` and `time_key`.
    """

    kind: Literal["llama-perf autoquant times"] = "llama-perf autoquant times"
    schema_version: Literal[1] = 1
    machines: dict[str, dict[str, float]] = field(default_factory=dict)


def default_path() -> Path:
    """`autoquant.json` in $LLAMA_PERF_CACHE, else in the user's cache folder."""
    if own := os.environ.get("LLAMA_PERF_CACHE"):
        return Path(own) / "autoquant.json"
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "llama-perf" / "autoquant.json"


def machine_key(fingerprint: Mapping[str, object]) -> str:
    """Device, features, threads, versions, and a hash of the kernels' source.

    `fingerprint` has the fields of `llama_perf.devices.device.fingerprint`.
    """
    return (
        "{device_key}, features {cpu_features}, {threads} threads, torch {torch},"
        " torchao {torchao}, triton {triton}, driver {driver},"
        " float32 {float32_matmul_precision}, kernels {source}"
    ).format(**fingerprint, source=_source_hash())


def time_key(candidate: str, product: Product, *, dtype: str, how: str) -> str:
    """Such as "int8wo 1x4096x11008 float32 compiled": M x N x K, and how it is run."""
    shape = f"{product.tokens}x{product.rows}x{product.columns}"
    return f"{candidate} {shape} {dtype} {how}"


@cache
def _source_hash() -> str:
    digest = hashlib.sha256()
    for folder in ("kernels", "quantize"):
        for path in sorted((_PACKAGE / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def read(path: Path) -> TimesFile:
    """The file, empty where there is none; raises RecordError for a damaged one."""
    return read_json(TimesFile, path) if path.exists() else TimesFile()


def keep(path: Path, machine: str, times: dict[str, float]) -> None:
    """Add `times` of `machine` to the file; raises RecordError where it cannot be."""
    # Read again: another run may have written since.
    machines = read(path).machines
    machines[machine] = {**machines.get(machine, {}), **times}
    try:
        write_atomically(path, to_json(TimesFile(machines=machines)))
    except OSError as error:
        raise RecordError(f"{path}: cannot be written: {error.strerror}") from None

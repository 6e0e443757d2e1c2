"""`llama-perf tune`: time the launches of the fused kernels on this card."""

import argparse
import sys
from pathlib import Path

from llama_perf.errors import NotRunnable, SpecError
from llama_perf.files import check_writable
from llama_perf.run.options import add_shared, request_of

HELP = "time the fused kernels' launches on this card and keep the fastest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_shared(parser, "--set", "--rows", "--row", "--shard")
    parser.add_argument(
        "--table",
        metavar="FILE",
        type=Path,
        help="the table to write (default: the package's own, which is then used)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Tune the products of the selected rows; each choice is stored when it is made."""
    from llama_perf.devices.device import check_device, device_of
    from llama_perf.kernels import launch_table
    from llama_perf.measure.environment import triton_problem
    from llama_perf.measure.tune import products, tune

    path = arguments.table or launch_table.FILE
    rows = request_of(arguments).selected()
    fused = products(rows)
    if not fused:
        raise SpecError("row", len(rows), "none of the selected rows is fused")
    launch_table.read(path)
    check_writable("table", path)
    device = check_device("cuda")
    if (problem := triton_problem()) is not None:
        raise NotRunnable(problem)
    key = device_of(device).key
    tuned = tune(
        fused,
        device,
        keep=lambda name, choice: launch_table.keep(key, {name: choice}, path),
        notify=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(
        f"{tuned} of {len(fused)} products of {key} have a launch of their own: {path}"
    )
    return 0

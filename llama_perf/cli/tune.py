"""`llama-perf tune`: time the launches of the fused kernels on this card."""

import argparse
import sys
from pathlib import Path

from llama_perf.errors import NotRunnable, UserError
from llama_perf.files import check_writable
from llama_perf.run.display import Display
from llama_perf.run.read_options import add_shared, request_of
from llama_perf.run.time_left import Task
from llama_perf.words import counted

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
    from llama_perf.measure.tune import products, title, tune

    path = arguments.table or launch_table.FILE
    rows = request_of(arguments).selected()
    try:
        device = check_device("cuda")
    except NotRunnable as error:
        raise NotRunnable(f"tune: it needs a CUDA GPU: {error}") from None
    fused = products(rows)
    if not fused:
        raise UserError(
            f"row: of {counted(len(rows), 'selected row')} none is fused on a CUDA GPU,"
            " so there is nothing to tune; choose others by --set, --rows or --row"
        )
    launch_table.read(path)
    check_writable("table", path)
    if (problem := triton_problem()) is not None:
        raise NotRunnable(problem)
    key = device_of(device).key
    display, tuned = Display.on(sys.stderr), 0
    display.plan(Task(id=title(*one), name=title(*one)) for one in fused)
    for scheme, product in fused:
        with display.next() as running:
            name, faster = tune(scheme, product, device)
            if faster is None:
                running.end("the rule")
                continue
            launch_table.keep(key, {name: faster}, path)
            tuned += 1
            running.end(f"{faster.us} us where the rule takes {faster.rule_us}")
    print(
        f"products of {key} with a launch of their own: {tuned} of {len(fused)}, in"
        f" {path}"
    )
    return 0

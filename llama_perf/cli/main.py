"""The command line: parses the options and runs one command.

A user's mistake is one line on stderr and exit code 2; a row that failed means exit
code 1. Ctrl-C means 130, SIGTERM 143.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from llama_perf.cli import (
    baseline,
    bisect,
    compare,
    doctor,
    generate,
    report,
    rows,
    run,
    tune,
)
from llama_perf.errors import UserError
from llama_perf.run.interrupts import described, exit_code, interrupts

MODULES = (generate, rows, run, compare, bisect, baseline, report, tune, doctor)
COMMANDS = {module.__name__.rpartition(".")[2]: module for module in MODULES}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse would print the usage as well: twelve lines for `generate`.
        raise UserError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    with interrupts():
        return _main(sys.argv[1:] if argv is None else argv)


def _main(words: Sequence[str]) -> int:
    parser = _Parser(
        prog="llama-perf",
        description="Performance-regression tests of Llama generation under"
        " quantization. The suite itself is `pytest tests/perf --benchmark-compare`.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.main)
    try:
        arguments = parser.parse_args(words)
        arguments.words = words
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except UserError as error:
        print(f"llama-perf: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        code = exit_code(error)
        print(f"llama-perf: {described(code)}", file=sys.stderr)
        return code
    except BrokenPipeError:
        # The reader of a pipe closed it, as `head` does: no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code

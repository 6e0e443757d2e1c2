"""The command line: parses the options and runs one command.

A user's mistake is one line on stderr and exit code 2; a row that failed means exit
code 1.
"""

import argparse
import io
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

MODULES = (generate, rows, run, compare, bisect, baseline, report, tune, doctor)
COMMANDS = {module.__name__.rpartition(".")[2]: module for module in MODULES}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse would print the usage as well: twelve lines for `generate`.
        raise UserError(message)


def _check_process() -> None:
    """Work around what the process that started this one left out, or raise UserError.

    A command that is closed on a stream gets an empty one. What an encoding lacks is
    shown escaped, and what is read in another one does not stop the command.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"the working directory cannot be used: {error.strerror}"
        ) from None
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one: a file opened later must not get it.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
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
        _check_process()
        arguments = parser.parse_args(argv)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except UserError as error:
        print(f"llama-perf: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("llama-perf: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe closed it, as `head` does: no error of ours.
        _drop_output()
        return 0
    except OSError as error:
        # A file that cannot be used is a UserError; stdout is written everywhere.
        if not _output_fails():
            raise
        _drop_output()
        print(f"llama-perf: error: stdout: {error.strerror}", file=sys.stderr)
        return 2
    return code


def _output_fails() -> bool:
    """Whether stdout cannot be written; a line break is tried."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _drop_output() -> None:
    """Have the rest of stdout go nowhere: Python writes it once more as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

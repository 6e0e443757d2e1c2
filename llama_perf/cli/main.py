"""The command line: parses the options and runs one command.

A user's mistake is one line on stderr and exit code 2; a row that failed means exit
code 1. Ctrl-C means 130, SIGTERM 143.
"""

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from llama_perf.cli import (
    baseline,
    bisect,
    closeness,
    comment,
    compare,
    diff,
    doctor,
    generate,
    history,
    report,
    rows,
    run,
    tune,
)
from llama_perf.cli.no_command import print_help
from llama_perf.errors import SpecError, UserError
from llama_perf.run.interrupts import described, exit_code, interrupts
from llama_perf.words import did_you_mean

MODULES = (
    *(generate, rows, run, closeness, compare, bisect, baseline),
    *(report, diff, history, comment, tune),
    doctor,
)
COMMANDS = {module.__name__.rpartition(".")[2]: module for module in MODULES}


_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)")


class _Parser(argparse.ArgumentParser):
    """A parser with the package's own words for mistakes, which names what was meant.

    argparse would print the usage as well: twelve lines for `generate`.
    """

    def error(self, message: str) -> NoReturn:
        # "argument -q/--quantization: ..." names the field as a row does.
        argument = re.match(
            r"argument (?:-\w/)?(?:--)?([\w-]+)(?:/[\w/-]+)?: ", message
        )
        if argument is None:
            raise UserError(message)
        name, problem = argument[1], message[argument.end() :]
        if (choice := _CHOICE.fullmatch(problem)) is None:
            raise UserError(f"{name.lower()}: {problem}")
        allowed = [word.strip("'") for word in choice[2].split(", ")]
        words = f"allowed: {', '.join(allowed)}"
        raise SpecError(name.lower(), choice[1], words, known=allowed)

    def parse_all(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse all words; raises UserError for an option that there is not."""
        arguments, unknown = self.parse_known_args(argv)
        if not unknown:
            return arguments
        # That of the command, or of its action.
        parser: argparse.ArgumentParser = getattr(arguments, "parser", self)
        options = re.findall(r"--[\w-]+", parser.format_help())
        meant = did_you_mean(unknown[0].partition("=")[0], options)
        hint = f"; {meant.strip()}" if meant else ""
        raise UserError(f"unrecognized arguments: {' '.join(unknown)}{hint}")


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
    with interrupts():
        return _main(sys.argv[1:] if argv is None else argv)


def _main(words: Sequence[str]) -> int:
    parser = _Parser(
        prog="llama-perf",
        description="Performance-regression tests of Llama generation under"
        " quantization. The suite itself is `pytest tests/perf --compare`.",
    )
    parser.set_defaults(parser=parser, run=print_help)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        command.set_defaults(parser=command, run=module.main)
        module.add_arguments(command)
    try:
        _check_process()
        arguments = parser.parse_all(words)
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

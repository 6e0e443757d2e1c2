"""What a command does that was given without the next word."""

import argparse


def print_help(arguments: argparse.Namespace) -> int:
    """Print the help of the command; returns 2.

    It is an error as in git, so that a script whose command is empty does not pass.
    """
    arguments.parser.print_help()
    return 2

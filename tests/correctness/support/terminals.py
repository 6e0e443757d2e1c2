"""Terminals for what a command shows while it works, and what a reader sees on them."""

import io
import os
import pty
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console

from llama_perf.run.display import Display

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_PARTS = re.compile(r"\x1b\[\??(\d*)([A-Za-z])|(\r\n|\r|\n)|([^\x1b\r\n])")


def quiet() -> Display:
    """A display that shows nothing."""
    return Display(Console(quiet=True))


def console(*, width: int = 80, is_terminal: bool = True) -> Console:
    """One that writes into a string: `console.file.getvalue()`."""
    return Console(
        file=io.StringIO(),
        force_terminal=is_terminal,
        force_interactive=is_terminal,
        color_system="standard" if is_terminal else None,
        highlight=False,
        width=width,
        height=25,
    )


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def screen(text: str, width: int = 80) -> list[str]:
    """The lines that a terminal shows in the end; an unknown control code fails."""
    rows, row, column = [""], 0, 0
    assert "".join(part[0] for part in _PARTS.finditer(text)) == text
    for number, control, motion, letter in _PARTS.findall(text):
        if motion:
            row, column = row + motion.count("\n"), 0
        elif control == "A":
            row -= int(number or 1)
        elif control == "K":
            assert number == "2"
            rows[row] = ""
        elif control:
            assert control in "mlh", control
        else:
            if column == width:
                row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
            line = rows[row].ljust(column)
            rows[row] = line[:column] + letter + line[column + 1 :]
            column += 1
        rows += [""] * (row + 1 - len(rows))
    return [line.rstrip() for line in rows]


@contextmanager
def pseudo_terminal() -> Iterator[tuple[TextIO, list[str]]]:
    """A stream to a real terminal, and all that arrived there, once it is closed."""
    leader, follower = pty.openpty()
    received = bytearray()
    arrived: list[str] = []

    def read() -> None:
        # Linux ends the reading by an error when the other side is closed.
        try:
            while part := os.read(leader, 4096):
                received.extend(part)
        except OSError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with open(follower, "w", encoding="utf-8") as stream:
            yield stream, arrived
    finally:
        reader.join()
        os.close(leader)
        arrived.append(received.decode())

"""Ctrl-C and SIGTERM, by which a user or a CI system ends a command.

Both raise KeyboardInterrupt where the command is at that moment. Once it is ending,
further ones change nothing, so that its table, its files and its clearing up are
complete. Knows no command.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whatever handles Ctrl-C handles it as well."""


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class _State:
    ending: bool = False
    shields: int = 0
    came: bool = False
    waiting: KeyboardInterrupt | None = None


# Signals are the process's, and so is what is done about them.
_state = _State()


def exit_code(error: KeyboardInterrupt) -> int:
    """The exit code of a command: 143 after SIGTERM, 130 after Ctrl-C."""
    number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
    return 128 + number


def described(code: int) -> str:
    """How the command with the exit code was ended, in words."""
    by = " by SIGTERM" if code == 128 + signal.SIGTERM else ""
    return f"interrupted{by}"


@contextmanager
def interrupts() -> Iterator[None]:
    """Have both signals raise KeyboardInterrupt while the block runs.

    A signal that the process was told to ignore stays ignored. Where one came, the
    process ends, and the handlers stay so that its end is not disturbed.
    """
    global _state
    # Python allows handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, outer = {}, _state
    _state = _State()
    for number in _SIGNALS:
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN:
            before[number] = handler
            signal.signal(number, _on_signal)
    try:
        yield
    finally:
        ignore_interrupts()
        came = _state.came
        for number, handler in before.items():
            # Python takes its own handlers away before the process has ended.
            signal.signal(number, signal.SIG_IGN if came else handler)
        if not came:
            _state = outer


def _on_signal(number: int, _frame: FrameType | None) -> None:
    _state.came = True
    if _state.ending:
        return
    error = KeyboardInterrupt()
    if number == signal.SIGTERM:
        error = Terminated("SIGTERM")
    if not _state.shields:
        raise error
    _state.waiting = _state.waiting or error


def ignore_interrupts() -> None:
    """Let neither signal disturb the end of the command, which begins here."""
    _state.ending = True


class Interruptible:
    """A block that an interrupt ends early, and after which none disturbs.

    `code` is the exit code after an interrupt, None where the block ran to its end.
    """

    def __init__(self) -> None:
        self.code: int | None = None

    def __enter__(self) -> "Interruptible":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> bool:
        ignore_interrupts()
        if isinstance(error, KeyboardInterrupt):
            self.code = exit_code(error)
        return self.code is not None


@contextmanager
def shielded() -> Iterator[None]:
    """Let an interrupt wait until the block, which should be short, has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.shields += 1
    try:
        yield
    finally:
        _state.shields -= 1
        error = _state.waiting
        if error is not None and not _state.shields:
            _state.waiting = None
            raise error

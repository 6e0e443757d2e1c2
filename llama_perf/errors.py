"""The errors that a user can cause, in one tree.

Each is shown as a single line without a traceback, which names the field, the value
and what is allowed. Bugs of this project are `assert`s and are not here.
"""

from collections.abc import Iterable

from llama_perf.words import did_you_mean, shown


class UserError(ValueError):
    """A mistake in the user's input; `str()` is the line that is shown.

    A file's own words may be in it: what would break the line, or cannot be written to
    a terminal, is escaped.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """`text`, cut where it is very long, with line breaks and their like escaped."""
    if len(text) > _LONGEST_LINE:
        text = f"{text[:_LONGEST_LINE]}..."
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


# The longest list of what is allowed fits.
_LONGEST_LINE = 4000


class SpecError(UserError):
    """A field of a row, a scheme's name or a command's option is not allowed.

    `known` are names that are allowed; the message has the one that was meant.
    """

    def __init__(
        self, field: str, value: object, allowed: str, *, known: Iterable[str] = ()
    ) -> None:
        meant = did_you_mean(value, known)
        super().__init__(f"{field}: {shown(value)} is not allowed; {meant}{allowed}")
        self.field = field


def check_positive(field: str, value: float) -> None:
    """Raise SpecError unless `value` is more than 0."""
    if value <= 0:
        raise SpecError(field, value, "allowed: more than 0")


def check_not_negative(field: str, value: float) -> None:
    """Raise SpecError for a value below 0."""
    if value < 0:
        raise SpecError(field, value, "allowed: 0 or more")


class WeightsError(UserError):
    """A checkpoint is missing, damaged, or does not fit the model."""


class MissingFileError(WeightsError):
    """A checkpoint lacks a file that belongs to it."""


class SaveError(UserError):
    """A model cannot be saved: its tensors cannot be stored, or the disk is full."""


class TokenizerError(UserError):
    """A tokenizer file is missing, damaged, or does not fit the model."""


class PromptError(UserError):
    """A prompt does not fit the cache or the vocabulary."""


class RecordError(UserError):
    """A file of records (rows, baseline, results) is wrong or of another version."""


class WriteError(UserError):
    """A file cannot be written: the disk is full, or a folder forbids it."""


class ValuesError(UserError):
    """A row computes wrong values, so its speed means nothing: it ends INVALID."""


class SchemeError(UserError):
    """A scheme of the user's own raised: its row ends INVALID, with the place."""


class NotRunnable(UserError):
    """A row cannot run here, for want of a device, memory or code: it ends NOT_RUN."""


class TooLarge(NotRunnable):
    """A row needs more memory than is free."""

    def __init__(self, message: str, *, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes

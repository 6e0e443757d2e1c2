"""The errors that a user can cause, in one tree.

Each is shown as a single line without a traceback, which names the field, the value
and what is allowed. Bugs of this project are `assert`s and are not here.
"""


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


def shown(value: object) -> str:
    """`repr(value)`, shortened where it is long."""
    try:
        text = repr(value)
    except ValueError:
        # Python writes no integer of thousands of digits.
        return "an integer of thousands of digits"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


# A path fits, and the longest list of what is allowed.
_LONGEST_VALUE, _LONGEST_LINE = 400, 4000


class SpecError(UserError):
    """A field of a row, a scheme's name or a command's option is not allowed."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field}: {shown(value)} is not allowed; {allowed}")
        self.field = field


def check_positive(field: str, value: float) -> None:
    """Raise SpecError unless `value` is more than 0."""
    if value <= 0:
        raise SpecError(field, value, "allowed: more than 0")


def check_count(field: str, count: int, minimum: int) -> None:
    """Raise SpecError for a number of processes that is not allowed."""
    if not minimum <= count <= 1000:
        raise SpecError(field, count, f"allowed: {minimum} to 1000")


class WeightsError(UserError):
    """A checkpoint is missing, damaged, or does not fit the model."""


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


class NotRunnable(UserError):
    """A row cannot run here, for want of a device, memory or code: it ends NOT_RUN."""


class TooLarge(NotRunnable):
    """A row needs more memory than is free."""

    def __init__(self, message: str, *, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes

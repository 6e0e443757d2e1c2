"""The end of what a broken process printed, as a reason in one line."""

_LINES = 5
_TRACEBACK = "Traceback (most recent call last):"


def tail(text: str) -> str:
    """The last lines of an output, joined; of a traceback the error, not its frames."""
    lines = [line for line in text.splitlines() if line.strip()]
    begins = [number for number, line in enumerate(lines) if _TRACEBACK in line]
    if begins:
        after = lines[begins[-1] + 1 :]
        # An error's own text may have lines that begin with a space too.
        unindented = [not line.startswith(" ") for line in after]
        lines = after[unindented.index(True) :] if any(unindented) else after
    return " | ".join(line.strip() for line in lines[-_LINES:]) or "no output"

"""The messages of errors."""

from typing import Any

import pytest

from llama_perf.errors import SpecError


def refusal(call: Any, *arguments: Any, error: Any = SpecError, **options: Any) -> str:
    """The message, of one line, of the error that `call` raises."""
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message

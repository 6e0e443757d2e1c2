"""Triton's interpreter without the work that these tests do not need.

Import it only in a process that began with TRITON_INTERPRET=1.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def patch_once(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Have a launch patch Triton's language once.

    The interpreter patches it again for each function that a kernel calls, which takes
    a third of its time.
    """

    def patched(function: Any) -> Any:
        languages = [
            value
            for value in function.__globals__.values()
            if value is tl or value is tl.core
        ]
        if any(tl.core.is_builtin(language.load) for language in languages):
            return patch(function)
        return interpreter._LangPatchScope()

    return patched


def hasten(*, overflows: bool) -> None:
    """Patch once a launch; look for overflows of integers only if `overflows`.

    Looking for them takes another third of the time.
    """
    interpreter._patch_lang = patch_once(interpreter._patch_lang)
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=overflows)

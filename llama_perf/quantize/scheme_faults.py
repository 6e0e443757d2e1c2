"""What a scheme of the user's own raises, as one line with the place in its code."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from llama_perf.errors import NotRunnable, SchemeError, UserError
from llama_perf.rows.config_call import TORCHAO
from llama_perf.rows.schemes import package_of


@contextmanager
def scheme_faults(name: str | None) -> Iterator[None]:
    """Raise SchemeError for what the package of a scheme raises.

    `name` is the scheme's; one of ours has no such package. Raises NotRunnable where
    that package lacks another one; what was raised elsewhere goes on as it is.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        if (package := package_of(name)) is None:
            raise
        for cause in _causes(error):
            if (place := place_in(cause, package)) is None:
                continue
            line = f"{type(cause).__name__}: {first_line(cause)}, at {place}"
            if _lacks_package(cause, package):
                raise NotRunnable(line) from error
            raise SchemeError(line) from error
        raise


def first_line(error: BaseException) -> str:
    """The first line of an exception's message."""
    lines = str(error).strip().splitlines() or ["no message"]
    # The compiler's "backend='inductor' raised:" needs the line after it.
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those it followed from: the compiler raises its own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def place_in(error: BaseException, package: str) -> str | None:
    """The last line of the package's code that was running, None without one."""
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__"))
        file = frame.f_code.co_filename
        # A dataclass' own functions have no file.
        if module.partition(".")[0] == package and not file.startswith("<"):
            above = len(module.split(".")) - (Path(file).name != "__init__.py")
            short = Path(*Path(file).parts[-1 - above :])
            place = f"{short}:{line} in {frame.f_code.co_qualname}"
    return place


def _lacks_package(error: BaseException, package: str) -> bool:
    """Whether it was raised for want of another package.

    torchao says so by an ImportError of its own.
    """
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return error.name.partition(".")[0] != package
    return isinstance(error, ImportError) and package == TORCHAO

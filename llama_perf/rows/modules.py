"""A row's `modules`: which linears of the model its scheme quantizes, by their names.

Globs with commas between; one that begins with ! leaves out what it matches. Knows the
names only as text.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from llama_perf.errors import SpecError

_GLOB = re.compile(r"!?[A-Za-z0-9_.*?\[\]-]+")
_LONGEST = 200
_FORM = (
    "write globs of linears with commas between, such as '*.feed_forward.*', 'output',"
    f" or '!output' for all others, at most {_LONGEST} characters"
)
_LAYER = re.compile(r"layers\.\d+\.")


@dataclass(frozen=True, slots=True)
class ModuleFilter:
    """Selects linears by name; without globs it selects all.

    Those that leave linears out come last. Without any other, they leave out of all.
    """

    globs: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> "ModuleFilter":
        """The filter of a row's `modules`; raises SpecError."""
        if text is None:
            return cls()
        globs = {glob.strip() for glob in text.split(",")}
        if len(text) > _LONGEST or not all(map(_GLOB.fullmatch, globs)):
            raise SpecError("modules", text, _FORM)
        ordered = sorted(globs, key=lambda glob: (glob.startswith("!"), glob))
        return cls(() if ordered == ["*"] else tuple(ordered))

    @property
    def text(self) -> str | None:
        """The one way in which it is written; None where it selects all."""
        return ",".join(self.globs) or None

    @property
    def token(self) -> str:
        """A short name of it for an id, in which globs have no place.

        It has a hash where a name would not say which linears are meant.
        """
        names = [re.sub(r"^(!?)\*\.|\.\*$", r"\1", glob) for glob in self.globs]
        words = "-".join(names).replace("!", "not-")
        token = re.sub(r"[^A-Za-z0-9_]+", "-", words).strip("-")
        if "*" not in words and "?" not in words and "[" not in words:
            return token
        digits = hashlib.sha256(",".join(self.globs).encode()).hexdigest()[:4]
        return "-".join(filter(None, (token, digits)))

    def selects(self, name: str) -> bool:
        """Whether the linear called `name` is quantized."""
        kept = [glob for glob in self.globs if not glob.startswith("!")]
        left_out = [glob[1:] for glob in self.globs if glob.startswith("!")]
        return any(fnmatchcase(name, glob) for glob in kept or ["*"]) and not any(
            fnmatchcase(name, glob) for glob in left_out
        )

    def check(self, names: Sequence[str]) -> None:
        """Raise SpecError unless each glob matches one of `names`, and one is left."""
        for glob in self.globs:
            if not any(fnmatchcase(name, glob.removeprefix("!")) for name in names):
                raise SpecError(
                    "modules",
                    self.text,
                    f"{glob!r} matches no linear of the model; {_listed(names)}",
                )
        if not any(map(self.selects, names)):
            reason = f"it leaves no linear to be quantized; {_listed(names)}"
            raise SpecError("modules", self.text, reason)


EVERY_LINEAR = ModuleFilter()


def _listed(names: Sequence[str]) -> str:
    """The names there are, once for all layers."""
    layers = {name.split(".")[1] for name in names if _LAYER.match(name)}
    short = [_LAYER.sub("layers.N.", name) for name in names]
    several = f", N from 0 to {len(layers) - 1}" if layers else ""
    return f"there are {', '.join(dict.fromkeys(short))}{several}"

"""Names of quantization schemes: parsing and validation.

Knows the grammar of the names alone, neither torch nor which scheme is built on
which kernels (`llama_perf.quantize.registry` knows that).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llama_perf.errors import SpecError

INT4_GROUP_SIZES = (32, 64, 128, 256)
UINTX_BITS = tuple(range(1, 9))

# A linear that stays as it is, where schemes are named by linear.
PLAIN = "none"
# What each of them chooses from.
AUTOQUANT = {
    "autoquant": (PLAIN, "int8wo", "int8dq"),
    "autoquant-int4": (PLAIN, "int8wo", "int8dq", "int4wo-64-hqq"),
}
PLAIN_FAMILIES = (
    "int8wo",
    "int8dq",
    "float8wo",
    "float8dq-tensor",
    "float8dq-row",
    "fp6",
    "sparse-marlin",
    *AUTOQUANT,
)

ALLOWED = (
    f"allowed: {', '.join(PLAIN_FAMILIES)}, "
    f"int4wo-{{{','.join(map(str, INT4_GROUP_SIZES))}}}[-hqq], "
    f"uintx-<bits {UINTX_BITS[0]}..{UINTX_BITS[-1]}>-<group size>[-hqq]"
)

_INT4 = re.compile(r"int4wo-([1-9]\d*)(-hqq)?")
_UINTX = re.compile(r"uintx-([1-9]\d*)-([1-9]\d*)(-hqq)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """A parsed scheme name.

    `family` is the name without its parameters ("int4wo", "uintx", "int8wo", ...);
    `bits` is given for uintx, `group_size` (weights that share a scale along K) for
    int4wo and uintx, `hqq` says that half-quadratic quantization picks the scales.
    """

    name: str
    family: str
    bits: int | None = None
    group_size: int | None = None
    hqq: bool = False

    @classmethod
    def parse(cls, name: str, *, field: str = "quantization") -> Scheme:
        """Parse `name` strictly; raises SpecError naming `field`."""
        if not isinstance(name, str):
            raise SpecError(field, name, ALLOWED)
        if name in PLAIN_FAMILIES:
            return cls(name=name, family=name)
        if match := _INT4.fullmatch(name):
            group_size = int(match[1])
            if group_size not in INT4_GROUP_SIZES:
                sizes = ", ".join(map(str, INT4_GROUP_SIZES))
                raise SpecError(field, name, f"the group size of int4wo is {sizes}")
            return cls(
                name=name, family="int4wo", group_size=group_size, hqq=bool(match[2])
            )
        if match := _UINTX.fullmatch(name):
            bits = int(match[1])
            if bits not in UINTX_BITS:
                raise SpecError(field, name, "the bits of uintx are 1 to 8")
            return cls(
                name=name,
                family="uintx",
                bits=bits,
                group_size=int(match[2]),
                hqq=bool(match[3]),
            )
        raise SpecError(field, name, ALLOWED)

"""Names of quantization schemes, and the kernels that each is built on.

Parses and checks names. Knows no torch and no weights: `llama_perf.quantize` builds
what is named here.
"""

import re
from dataclasses import dataclass

from llama_perf.errors import SpecError

INT4_GROUP_SIZES = (32, 64, 128, 256)
UINTX_BITS = tuple(range(1, 9))

UNQUANTIZED = "none"
"""The name of no scheme, where each linear has one."""
AUTOQUANT = {
    "autoquant": (UNQUANTIZED, "int8wo", "int8dq"),
    "autoquant-int4": (UNQUANTIZED, "int8wo", "int8dq", "int4wo-64-hqq"),
}
"""The schemes from which each autoquant chooses."""
_NATIVE, _BOTH = ("native",), ("native", "torchao")
_BITSANDBYTES = ("bitsandbytes",)
FAMILIES: dict[str, tuple[str, ...]] = {
    "int8wo": (*_BOTH, "gemlite"),
    "int8dq": (*_BOTH, "gemlite", "bitsandbytes"),
    "float8wo": (*_BOTH, "gemlite"),
    "float8dq-tensor": _BOTH,
    "float8dq-row": (*_BOTH, "gemlite"),
    "fp6": _NATIVE,
    "sparse-marlin": _NATIVE,
    **dict.fromkeys(AUTOQUANT, _NATIVE),
    "nf4": _BITSANDBYTES,
    "fp4": _BITSANDBYTES,
    "llm-int8": _BITSANDBYTES,
    "int4wo": (*_BOTH, "gemlite"),
    "uintx": (*_NATIVE, "gemlite"),
}
"""The kernels that a family of schemes is built on, the preferred ones first."""

# Families whose names have parameters; the name of any other is the scheme's.
_WITH_GROUPS = ("int4wo", "uintx")
_WITHOUT_GROUPS = tuple(family for family in FAMILIES if family not in _WITH_GROUPS)
ALLOWED = (
    f"allowed: {', '.join(_WITHOUT_GROUPS)}, "
    f"int4wo-{{{','.join(map(str, INT4_GROUP_SIZES))}}}[-hqq], "
    f"uintx-<bits {UINTX_BITS[0]}..{UINTX_BITS[-1]}>-<group size>[-hqq]"
)
# Of those with parameters, the ones that rows have most.
_NAMES = (
    *_WITHOUT_GROUPS,
    *(f"int4wo-{size}{hqq}" for hqq in ("", "-hqq") for size in INT4_GROUP_SIZES),
    *(f"uintx-{bits}-{size}" for bits in UINTX_BITS for size in (8, 64)),
)

_GROUPED = re.compile(r"(?:int4wo|uintx-([1-9]\d*))-([1-9]\d*)(-hqq)?")


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

    @property
    def kernels(self) -> tuple[str, ...]:
        """The kinds of kernels it is built on, the preferred one first."""
        return FAMILIES[self.family]

    @classmethod
    def parse(cls, name: str, *, field: str = "quantization") -> "Scheme":
        """Parse `name` strictly; raises SpecError naming `field`."""
        if name in _WITHOUT_GROUPS:
            return cls(name=name, family=name)
        match = _GROUPED.fullmatch(name) if isinstance(name, str) else None
        if match is None:
            raise SpecError(field, name, ALLOWED, known=_NAMES)
        bits = None if match[1] is None else int(match[1])
        group_size = int(match[2])
        if bits is None and group_size not in INT4_GROUP_SIZES:
            sizes = ", ".join(map(str, INT4_GROUP_SIZES))
            raise SpecError(field, name, f"the group size of int4wo is {sizes}")
        if bits is not None and bits not in UINTX_BITS:
            raise SpecError(field, name, "the bits of uintx are 1 to 8")
        return cls(
            name=name,
            family="int4wo" if bits is None else "uintx",
            bits=bits,
            group_size=group_size,
            hqq=match[3] is not None,
        )

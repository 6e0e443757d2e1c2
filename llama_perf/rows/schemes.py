"""Names of quantization schemes, and the kernels that each is built on.

Parses and checks names. Knows no torch and no weights: `llama_perf.quantize` builds
what is named here.
"""

import re
from dataclasses import dataclass

from llama_perf.errors import SpecError
from llama_perf.rows import plugins
from llama_perf.rows.config_call import FORM, TORCHAO, ConfigCall, parse_call

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
OWN = "own"
"""The family of every config of torchao's or of a user's package, and of the schemes
that installed packages add; and the kernels of all but torchao's."""

# Families whose names have parameters; the name of any other is the scheme's.
_WITH_GROUPS = ("int4wo", "uintx")
_WITHOUT_GROUPS = tuple(family for family in FAMILIES if family not in _WITH_GROUPS)
ALLOWED = (
    f"allowed: {', '.join(_WITHOUT_GROUPS)}, "
    f"int4wo-{{{','.join(map(str, INT4_GROUP_SIZES))}}}[-hqq], "
    f"uintx-<bits {UINTX_BITS[0]}..{UINTX_BITS[-1]}>-<group size>[-hqq], {FORM}"
)
# Of those with parameters, the ones that rows have most.
_NAMES = (
    *_WITHOUT_GROUPS,
    *(f"int4wo-{size}{hqq}" for hqq in ("", "-hqq") for size in INT4_GROUP_SIZES),
    *(f"uintx-{bits}-{size}" for bits in UINTX_BITS for size in (8, 64)),
)

_GROUPED = re.compile(r"(?:int4wo|uintx-([1-9]\d*))-([1-9]\d*)(-hqq)?")


def is_config(name: object) -> bool:
    """Whether a scheme's name is the call of a config."""
    return isinstance(name, str) and ":" in name


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """A parsed scheme name.

    `family` is the name without its parameters ("int4wo", "uintx", "int8wo", ...);
    `bits` is given for uintx, `group_size` (weights that share a scale along K) for
    int4wo and uintx, `hqq` says that half-quadratic quantization picks the scales.
    Of a config in the form `module:Config(...)` the name is that text, in the one way
    in which it is written, the family is "own", and `config` is what it says.
    """

    name: str
    family: str
    bits: int | None = None
    group_size: int | None = None
    hqq: bool = False
    config: ConfigCall | None = None

    @property
    def kernels(self) -> tuple[str, ...]:
        """The kinds of kernels it is built on, the preferred one first."""
        if self.config is not None:
            return (TORCHAO if self.config.package == TORCHAO else OWN,)
        return (OWN,) if self.family == OWN else FAMILIES[self.family]

    @property
    def token(self) -> str:
        """A short name of it for ids, folders and charts."""
        return self.name if self.config is None else self.config.token

    @classmethod
    def parse(
        cls, name: str, *, field: str = "quantization", kernels: str | None = None
    ) -> "Scheme":
        """Parse `name` strictly; raises SpecError naming `field`.

        The name of a scheme that an installed package adds has the family OWN. With
        OWN kernels, as a stored row has them, its package need not be here.
        """
        if name in _WITHOUT_GROUPS:
            return cls(name=name, family=name)
        if is_config(name):
            config = parse_call(name, field)
            return cls(name=config.text, family=OWN, config=config)
        match = _GROUPED.fullmatch(name) if isinstance(name, str) else None
        if match is None:
            stored = kernels == OWN and plugins.NAME.fullmatch(name)
            if stored or _offered(name, field):
                return cls(name=name, family=OWN)
            own = [one.name for one in plugins.usable(plugins.SCHEMES, is_built_in)]
            allowed = ", ".join([ALLOWED, *own])
            raise SpecError(field, name, allowed, known=(*_NAMES, *own))
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


def is_built_in(name: str) -> bool:
    """Whether a scheme's name is this project's, with any parameters."""
    taken = (*FAMILIES, UNQUANTIZED, OWN)
    return name in taken or name.startswith(tuple(f"{it}-" for it in _WITH_GROUPS))


def package_of(name: str | None) -> str | None:
    """The package whose code a scheme runs; None of one that is built in."""
    if name is None or is_built_in(name):
        return None
    if ":" in name:
        config = Scheme.parse(name).config
        return None if config is None else config.package
    offers = (one for one in plugins.offers(plugins.SCHEMES) if one.name == name)
    return next((offer.module_package for offer in offers), None)


def check_one_package(name: str, *, field: str = "quantization") -> None:
    """Raise SpecError for the name of a scheme that an installed package has too.

    Of a stored row it does not matter.
    """
    _offered(name, field)


def _offered(name: str, field: str) -> plugins.Offer | None:
    return plugins.offered(plugins.SCHEMES, name, is_built_in, field=field)

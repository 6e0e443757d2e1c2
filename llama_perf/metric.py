"""A metric of a row: how it is compared, its limits, and its column in a report.

Knows a measurement only by the names of its fields. `metrics.py` has all metrics.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from typing import Any


class Rule(Enum):
    """How a metric is compared with a baseline's."""

    SHOWN = "has a column, and is not compared"
    REPORTED = "its change is reported, and has no limit"
    SPEED = "judged by the noise between processes: `gate/judgements.py`"
    PEAK = "a growth is confirmed by fresh processes: `gate/judgements.py`"
    GROWTH = "worse if it changed by more than a share"
    WORK = "the same, if autoquant chose the same formats: `gate/verdict.py`"
    COUNT = "worse if there are more of them: `gate/verdict.py`"
    CLOSENESS = "compared where both read the same text: `gate/closeness.py`"


@dataclass(frozen=True, slots=True)
class LimitField:
    """A limit that users may set, and its default, another one on some devices.

    A share of a loss is below 1. Limits with `integral` are bytes, or counts. One with
    a `unit` is an amount in it. `of_drawn` is the default of rows whose codes are drawn
    as they run: `gate/judgements.py`.
    """

    name: str
    meaning: str
    default: float
    by_device: Mapping[str, float] = field(default_factory=dict)
    is_loss: bool = False
    integral: bool = False
    unit: str = ""
    of_drawn: float | None = None

    def on(self, device: str, *, is_drawn: bool = False) -> float:
        """The default on a device."""
        if is_drawn and self.of_drawn is not None:
            return self.of_drawn
        return self.by_device.get(device, self.default)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a report: the value times `scale`.

    `name` is what `--columns` calls it. `change` has the name of the column that
    follows it, and the title of the metric whose change stands there. A table has a
    column that is not usual only where it is named; None: it is usual where any row has
    the metric. One with a `fallback` shows that field of a row without the metric.
    """

    name: str
    header: str
    digits: int
    scale: float = 1.0
    change: tuple[str, str] | None = None
    is_usual: bool | None = True
    fallback: str | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: `title` names it in results and reasons.

    `source` is the field or property of a measurement, dotted for one of its records.
    `digits` are for reasons. The first of `limits` is that of its change; a second one
    of GROWTH or CLOSENESS is an amount that never counts. Its change is a share, or a
    `difference` in the unit that this names. `flat_name` is its name in a flat line, if
    that is not its field's.
    """

    title: str
    source: str
    rule: Rule
    column: Column | None = None
    _: KW_ONLY
    more_is_better: bool = False
    digits: int = 3
    limits: tuple[LimitField, ...] = ()
    difference: str = ""
    flat_name: str = ""

    @property
    def name(self) -> str:
        """What an option calls it: its column's name, or else its field's."""
        return self.column.name if self.column else self.field

    @property
    def field(self) -> str:
        """Its name in a flat line."""
        return self.flat_name or self.source.rpartition(".")[2]

    def read(self, measurement: object) -> float | None:
        """The metric's value, None if it was not measured."""
        value = value_of(measurement, self.source)
        assert value is None or isinstance(value, int | float), self.source
        return value

    def shown(self, value: float) -> str:
        """A value as reasons write it, bytes in GB."""
        if self.source.endswith("_bytes"):
            return f"{value / 1e9:.{self.digits}f} GB"
        return f"{value:.{self.digits}f}"

    def shown_change(self, change: float) -> str:
        """A change as reasons write it, such as "-6.9%" or "-1.20 dB"."""
        if self.difference:
            return f"{change:+.{self.digits}f} {self.difference}"
        return f"{change:+.1%}"

    def shown_limit(self, limit: float) -> str:
        """The limit of a change in words."""
        return f"{limit:g} {self.difference}" if self.difference else f"{limit:.1%}"


def value_of(measurement: object, source: str) -> Any:
    """A measurement's field or property, dotted for one of its records, or None."""
    value = measurement
    for name in source.split("."):
        value = getattr(value, name, None)
    return value

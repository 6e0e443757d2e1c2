"""The metrics of a row: one table, from which limits, verdicts and reports follow.

A metric that is added to `METRICS` is judged by its rule, may be set under `limits` by
a user, and has a column in a report if it asks for one. Knows a measurement only by
the names of its fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Rule(Enum):
    """How a metric is compared with a baseline's."""

    SHOWN = "has a column, and is not compared"
    REPORTED = "its change is reported, and has no limit"
    SPEED = "judged by the noise between processes: `gate/judge_speed.py`"
    PEAK = "a growth is confirmed by fresh processes: `gate/judge_memory.py`"
    GROWTH = "worse if it changed by more than a share"
    WORK = "the same, if autoquant chose the same formats: `gate/step_changes.py`"
    COUNT = "worse if there are more of them: `gate/step_changes.py`"


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitField:
    """A limit that users may set by its name, its meaning and its default.

    `by_device` has the devices on which the default is another one. A share of a loss
    is below 1. `whole` limits are whole numbers: bytes, or how many more are allowed.
    """

    name: str
    meaning: str
    default: float
    by_device: Mapping[str, float] = field(default_factory=dict)
    is_loss: bool = False
    whole: bool = False

    def on(self, device: str) -> float:
        """The default on a device."""
        return self.by_device.get(device, self.default)


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column of a report: the value times `scale`, and its change if it is shown."""

    header: str
    digits: int
    scale: float = 1.0
    change: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric: `title` names it in results and reasons.

    `source` is the field of a measurement, dotted for a field of one of its records.
    A value is written in reasons with `digits`, in GB if `in_gb`. The first of `limits`
    is that of its change.
    """

    title: str
    source: str
    rule: Rule
    more_is_better: bool = False
    in_gb: bool = False
    digits: int = 3
    limits: tuple[LimitField, ...] = ()
    column: Column | None = None

    def read(self, measurement: object) -> float | None:
        """The metric's value, None if it was not measured."""
        value = measurement
        for name in self.source.split("."):
            value = getattr(value, name, None)
        assert value is None or isinstance(value, int | float), (
            f"{self.source}: {value}"
        )
        return value

    def shown(self, value: float) -> str:
        """A value as reasons write it."""
        if self.in_gb:
            return f"{value / 1e9:.{self.digits}f} GB"
        return f"{value:.{self.digits}f}"


MIN_LOSS = 0.01
"""The loss of speed, as a share, below which none counts, however small the noise."""

TOK_S = Metric(
    title="tok/s",
    source="tok_s",
    rule=Rule.SPEED,
    more_is_better=True,
    digits=2,
    limits=(
        LimitField(
            name="least_loss",
            meaning="loss of speed that never counts, however small the noise",
            default=MIN_LOSS,
            is_loss=True,
        ),
        # For a baseline with too few processes. The CPU's is that of a shared machine:
        # docs/gate-why.md has the measurements.
        LimitField(
            name="tok_s",
            meaning="loss of speed, if the baseline has fewer than 3 processes",
            default=0.05,
            by_device={"cpu": 0.25},
            is_loss=True,
        ),
    ),
    column=Column(header="tok/s", digits=2, change=True),
)
PEAK_MEMORY = Metric(
    title="peak memory",
    source="peak_memory_bytes",
    rule=Rule.PEAK,
    in_gb=True,
    limits=(
        LimitField(
            name="peak_memory",
            meaning="growth of reserved bytes; of resident memory on a CPU",
            default=0.01,
            by_device={"cpu": 0.10},
        ),
        # A growth by no more bytes never counts: a resident set varies by so many.
        LimitField(
            name="peak_memory_bytes",
            meaning="growth of the peak, in bytes, that never counts",
            default=0,
            by_device={"cpu": 32_000_000},
            whole=True,
        ),
    ),
    column=Column(header="peak GB", digits=2, scale=1e-9, change=True),
)

METRICS = (
    TOK_S,
    Metric(
        title="decode tok/s",
        source="decode_tok_s",
        rule=Rule.REPORTED,
        more_is_better=True,
        digits=2,
        column=Column(header="decode tok/s", digits=2),
    ),
    Metric(
        title="time to first token (s)",
        source="time_to_first_token_s",
        rule=Rule.REPORTED,
        digits=2,
        column=Column(header="first token ms", digits=1, scale=1e3),
    ),
    Metric(
        title="model bandwidth",
        source="bandwidth_gb_s",
        rule=Rule.SHOWN,
        more_is_better=True,
        column=Column(header="GB/s", digits=2),
    ),
    Metric(
        title="share of the device's bandwidth",
        source="device_bandwidth_share",
        rule=Rule.SHOWN,
        more_is_better=True,
        column=Column(header="% of bandwidth", digits=1, scale=100),
    ),
    PEAK_MEMORY,
    # Allocated bytes, the model's size and the calls of a step hardly vary.
    Metric(
        title="allocated memory",
        source="peak_allocated_bytes",
        rule=Rule.GROWTH,
        in_gb=True,
        limits=(
            LimitField(
                name="allocated_memory", meaning="growth of tensors", default=0.01
            ),
        ),
    ),
    Metric(
        title="model size",
        source="model_size_bytes",
        rule=Rule.GROWTH,
        in_gb=True,
        limits=(LimitField(name="model_size", meaning="growth", default=0.001),),
        column=Column(header="model GB", digits=2, scale=1e-9),
    ),
    Metric(
        title="calls a step",
        source="step.calls",
        rule=Rule.WORK,
        digits=0,
        limits=(
            LimitField(
                name="calls",
                meaning="growth of kernels in a decoding step; of operators on a CPU",
                default=0.01,
            ),
        ),
    ),
    Metric(
        title="graph breaks",
        source="graph_breaks",
        rule=Rule.COUNT,
        digits=0,
        limits=(
            LimitField(
                name="graph_breaks",
                meaning="how many more are allowed",
                default=0,
                whole=True,
            ),
        ),
    ),
    Metric(
        title="compilations",
        source="compilations",
        rule=Rule.COUNT,
        digits=0,
        limits=(
            LimitField(
                name="compilations",
                meaning="how many more are allowed",
                default=0,
                whole=True,
            ),
        ),
    ),
    Metric(
        title="signal to noise of the value check",
        source="check.signal_to_noise_db",
        rule=Rule.SHOWN,
        more_is_better=True,
        column=Column(header="check dB", digits=0),
    ),
)
LIMIT_FIELDS = {limit.name: limit for metric in METRICS for limit in metric.limits}


def metrics_by(*rules: Rule) -> list[Metric]:
    """The metrics that are compared by any of `rules`."""
    return [metric for metric in METRICS if metric.rule in rules]

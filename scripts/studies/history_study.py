"""`python -m scripts.studies.history_study`: what `llama-perf history check` finds.

Histories of 200 nights are made up, with changes at known nights, and checked after
each night, as a nightly job does. With --write the tables go into docs/history.md.
Same seeds, same tables.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

from llama_perf.gate import change_points
from llama_perf.gate.change_points import Step
from scripts.doc_tables.document import Place, github_table

DOCUMENT = "history.md"
NIGHTS = 200
FIRST = 10
"""The night of the first check."""
DEVIATIONS = (0.005, 0.01, 0.03, 0.10)
LOSSES = (0.01, 0.02, 0.03, 0.05, 0.10, 0.25)
CLEAR = ((0.005, 0.03), (0.01, 0.03), (0.03, 0.10), (0.10, 0.25))
"""For each deviation a loss of at least 2.5 times as much, by which settings differ."""
AFTER = (1, 2, 3, 5, 10, 20, 30)
"""So many nights after a change it is looked whether a check has found it."""
NEAR = 5
"""A change point lies so many nights from the change at most, or it is another one."""
DRIFT_SHARE, DRIFT_KEPT = 0.2, 0.9
OUTLIERS, OUTLIER_LOSS = 0.01, 0.3
APART = (2, 3, 5, 10, 20)


class Settings(NamedTuple):
    """How change points are found, those of `llama_perf` by default."""

    window: int = change_points.WINDOW
    max_p_value: float = change_points.MAX_P_VALUE
    most_apart: float = change_points.MOST_APART
    min_runs: int = change_points.MIN_RUNS
    least: float = change_points.LEAST

    def steps(self, values: Sequence[float]) -> list[Step]:
        """The change points of a series."""
        found = change_points.candidates(
            values,
            window=self.window,
            max_p_value=self.max_p_value,
            most_apart=self.most_apart,
        )
        return change_points.counted_ones(
            values, found, least=self.least, min_runs=self.min_runs
        )


USUAL = Settings()
OTHERS = (
    *(USUAL._replace(window=window) for window in (50, 100)),
    *(USUAL._replace(max_p_value=most) for most in (1e-3, 1e-5, 1e-7)),
    USUAL._replace(most_apart=math.inf),
    *(USUAL._replace(min_runs=runs) for runs in (2, 5)),
    USUAL._replace(least=0.01),
)
"""One setting changed at a time."""


def nights(
    deviation: float,
    seed: int,
    changes: Sequence[tuple[int, float]] = (),
    *,
    drift_share: float = DRIFT_SHARE,
) -> list[float]:
    """A history of tok/s, about 100 before the first of `changes`: (night, share).

    The logarithms have a standard deviation of `deviation`. Of the variance
    `drift_share` drifts from night to night, the rest has the tails of Student's t of 4
    degrees. One night in a hundred is slower by up to 30 %.
    """
    source = np.random.default_rng([seed, round(deviation * 1e4)])
    own = source.standard_t(4, NIGHTS) / math.sqrt(2) * math.sqrt(1 - drift_share)
    pushes = source.standard_normal(NIGHTS) * math.sqrt(1 - DRIFT_KEPT**2)
    drift = [float(source.standard_normal())]
    for push in pushes[1:]:
        drift.append(DRIFT_KEPT * drift[-1] + float(push))
    logs = deviation * (own + math.sqrt(drift_share) * np.array(drift))
    is_hit = source.random(NIGHTS) < OUTLIERS
    logs += is_hit * np.log1p(-OUTLIER_LOSS * source.random(NIGHTS))
    for night, change in changes:
        logs[night:] += math.log1p(change)
    values: list[float] = (100 * np.exp(logs)).tolist()
    return values


def changed(
    deviation: float, change: float, series: int
) -> Iterator[tuple[list[float], int]]:
    """Histories with one change, each with its night, somewhere in the middle."""
    for seed in range(series):
        night = 60 + 7 * seed % 100
        yield nights(deviation, 1000 + seed, [(night, change)]), night


def alarms(values: Sequence[float], settings: Settings = USUAL) -> list[int]:
    """The nights after which a check of an unchanged history begins to fail."""
    failing = [False]
    for count in range(FIRST, len(values) + 1):
        steps = settings.steps(values[:count])
        failing.append(bool(steps) and steps[-1].change < 0)
    begins = pairwise(failing)
    return [FIRST + night for night, (was, fails) in enumerate(begins) if fails > was]


def nights_to_find(
    values: Sequence[float], night: int, settings: Settings = USUAL
) -> int | None:
    """After how many nights a check fails for a loss in `night`; None: in no 30."""
    for count in range(1, AFTER[-1] + 1):
        steps = settings.steps(values[: night + count])
        if steps and steps[-1].change < 0 and abs(steps[-1].start - night) <= NEAR:
            return count
    return None


def _found(
    deviation: float, loss: float, series: int, settings: Settings = USUAL
) -> list[int | None]:
    histories = changed(deviation, -loss, series)
    return [nights_to_find(values, night, settings) for values, night in histories]


def _nights_off(deviation: float, change: float, series: int) -> list[int | None]:
    """How far the nearest change point of its sign is from the change, 30 nights on."""
    off: list[int | None] = []
    for values, night in changed(deviation, change, series):
        steps = USUAL.steps(values[: night + AFTER[-1]])
        near = [abs(step.start - night) for step in steps if step.change * change > 0]
        off.append(min(near) if near and min(near) <= NEAR else None)
    return off


def _share(found: Sequence[bool]) -> str:
    return f"{sum(found) / len(found):.0%}"


def _within(found: Sequence[int | None], count: int) -> str:
    return _share([one is not None and one <= count for one in found])


def _percent(share: float) -> str:
    return f"{share * 100:g} %"


def losses_table(series: int) -> str:
    """How soon a loss is found, by the noise and the loss."""
    rows = []
    for deviation, loss in product(DEVIATIONS, LOSSES):
        cells = loss_cells(deviation, loss, series)
        cells.append(_within(_nights_off(deviation, -loss, series), 0))
        cells.append(_within(_nights_off(deviation, loss, series), NEAR))
        rows.append([_percent(deviation), _percent(loss), *cells])
    headers = ["noise", "loss", *(f"in {count}" for count in AFTER)]
    return github_table(rows, [*headers, "right night", "gain in 30"])


def alarms_table(series: int) -> str:
    """False alarms of an unchanged history, with drift and without."""
    rows = []
    for deviation, drift_share in product(DEVIATIONS, (DRIFT_SHARE, 0.0)):
        histories = [
            nights(deviation, seed, drift_share=drift_share) for seed in range(series)
        ]
        begun = sum(len(alarms(values)) for values in histories) / series
        points = sum(len(USUAL.steps(values)) for values in histories) / series
        drift = "a fifth" if drift_share else "none"
        rows.append([_percent(deviation), drift, f"{begun:.2f}", f"{points:.2f}"])
    headers = ["noise", "drifts", "false alarms", "change points after all nights"]
    return github_table(rows, headers)


def settings_table(series: int) -> str:
    """False alarms, and clear losses found, by settings."""
    rows = []
    for one in (USUAL, *OTHERS):
        cells = []
        for deviation, loss in CLEAR:
            histories = [nights(deviation, seed) for seed in range(series)]
            begun = sum(len(alarms(values, one)) for values in histories) / series
            found = _found(deviation, loss, series, one)
            within = ", ".join(_within(found, count) for count in (3, 5, 10))
            cells.append(f"{begun:.2f}; {within}")
        named = [f"{one.window}", f"{one.max_p_value:g}"]
        named += [f"{one.most_apart:g}", f"{one.min_runs}"]
        rows.append([*named, _percent(one.least), *cells])
    headers = ["window", "p-value", "apart", "runs", "least"]
    headers += [f"noise {_percent(one)}, -{loss:.0%}" for one, loss in CLEAR]
    return github_table(rows, headers)


def pair_cells(second: float, apart: int, series: int) -> list[str]:
    """The shares of histories in which both, one and none of two changes are found."""
    changes = [(100, -0.05), (100 + apart, second)]
    counts = []
    for seed in range(series):
        steps = USUAL.steps(nights(0.01, 2000 + seed, changes))
        found = [
            any(
                abs(one.start - night) <= 1 and one.change * change > 0 for one in steps
            )
            for night, change in changes
        ]
        counts.append(sum(found))
    return [_share([count == wanted for count in counts]) for wanted in (2, 1, 0)]


def pairs_table(series: int) -> str:
    """Two changes close together, in the whole history of a machine of 1 %."""
    rows = [
        [
            f"-5 %, then {second * 100:+g} %",
            str(apart),
            *pair_cells(second, apart, series),
        ]
        for second, apart in product((0.05, -0.05), APART)
    ]
    headers = ["changes", "nights apart", "both found", "one of them", "none"]
    return github_table(rows, headers)


def loss_cells(deviation: float, loss: float, series: int) -> list[str]:
    """The shares of histories in which a loss is found within so many nights."""
    found = _found(deviation, loss, series)
    return [_within(found, count) for count in AFTER]


TABLES: Mapping[str, tuple[Callable[[int], str], int]] = {
    "losses": (losses_table, 100),
    "alarms": (alarms_table, 100),
    "pairs": (pairs_table, 100),
    "settings": (settings_table, 15),
}
"""How each is computed, and of how many histories of each kind."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables asked for; with `--write` put them into the document."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.history_study",
        description="What `llama-perf history check` finds in made-up histories.",
    )
    add = parser.add_argument
    add("table", nargs="*", metavar="TABLE", help=f"{', '.join(TABLES)}; default: all")
    add("--series", metavar="N", type=int, help="histories of each kind")
    add("--write", action="store_true", help=f"into docs/{DOCUMENT}")
    arguments = parser.parse_args(argv)
    for name in arguments.table or TABLES:
        table, series = TABLES[name]
        text = table(arguments.series or series)
        print(text, flush=True)
        if arguments.write:
            Place(DOCUMENT, f"history {name}").write(text)


if __name__ == "__main__":
    main()

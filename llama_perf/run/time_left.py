"""How long the tasks of a command take: an estimate from those that ended.

Knows nothing of a terminal, and runs nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from llama_perf.results.measurement import Measurement


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A part of what a command does, such as a row in a process of its own.

    Tasks with one `id` take about as long. Those of one `kind` are taken to, where
    nothing better is known. `stored_s` is what a baseline says; 0 needs no time.
    """

    id: str
    name: str
    kind: str = ""
    stored_s: float | None = None


class Ended(NamedTuple):
    """A task, and the seconds that it took."""

    task: Task
    seconds: float


def stored_s(then: Measurement) -> float:
    """The seconds that a stored row took: to build, to warm up, its samples."""
    return (then.build_s or 0) + (then.warm_up_s or 0) + sum(then.sample_ns) / 1e9


def expected_s(task: Task, ended: Sequence[Ended]) -> float | None:
    """The seconds that a task will take; None where nothing is known of its like.

    They are the mean of the tasks with its id that ended. Before one has, they are the
    baseline's, scaled by how those of its kind compared with theirs, and without a
    baseline the mean of its kind.
    """
    if same := [seconds for one, seconds in ended if one.id == task.id]:
        return fmean(same)
    like = [one for one in ended if one.task.kind == task.kind]
    if task.stored_s is None:
        return fmean(seconds for _, seconds in like) if like else None
    compared = [one for one in like if one.task.stored_s]
    then = sum(one.task.stored_s or 0 for one in compared)
    now = sum(seconds for _, seconds in compared)
    return task.stored_s * (now / then if compared else 1.0)


def total_s(tasks: Iterable[Task], ended: Sequence[Ended]) -> float | None:
    """The seconds that all of `tasks` will take; None where one is not known."""
    seconds = [expected_s(task, ended) for task in tasks]
    known = [one for one in seconds if one is not None]
    return sum(known) if len(known) == len(seconds) else None

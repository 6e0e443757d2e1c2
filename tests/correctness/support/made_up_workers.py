"""Workers without processes, whose times a test makes up."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_perf.results.run import RowResult
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import RunRequest
from llama_perf.run.worker_protocol import RowEnded, WorkerResult
from tests.correctness.support.record_samples import ENVIRONMENT, measured

BASE = Path("base")
"""The folder of the base; another one is the head's."""


class Machine:
    """Workers made up: what they were asked, in order, and how long a sample takes.

    `ranks` are those of each worker, in the order of their starts. `ns(side, number)`
    is the time of a side's sample; `ends` are the results of the actions, by side and
    name, that end a row.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.ranks: list[int] = []
        self.slowdowns: dict[str, object] = {}
        self.keeps_rows = {"base": True, "head": True}
        self.ns: Callable[[str, int], int] = lambda _side, _number: 10**8
        self.tok_s: Callable[[str, int], float] = lambda _side, _number: 100.0
        self.ends: dict[tuple[str, str], RowResult] = {}
        self.changes: dict[str, Any] = {"sample_ns": (10**8, 10**8)}
        self.of_side: dict[str, dict[str, Any]] = {}

    def count(self, side: str, action: str) -> int:
        return self.asked.count((side, action))

    def actions(self, *names: str) -> list[tuple[str, str]]:
        return [one for one in self.asked if one[1] in names]


class MadeUpWorker:
    """One of a machine's workers."""

    process_id = os.getpid()

    def __init__(
        self,
        machine: Machine,
        *,
        options: RunRequest,
        package: Path | None = None,
        ranks: int = 1,
        **_: object,
    ) -> None:
        self.machine, self.side = machine, "base" if package == BASE else "head"
        self.keeps_rows = machine.keeps_rows[self.side]
        machine.slowdowns[self.side] = options.inject_slowdown
        machine.asked.append((self.side, "start"))
        machine.ranks.append(ranks)

    def _act(self, action: str) -> None:
        machine = self.machine
        machine.asked.append((self.side, action))
        if (ended := machine.ends.get((self.side, action))) is not None:
            raise RowEnded(WorkerResult(result=ended, environment=None))

    def load(self, _row: RowSpec) -> None:
        self._act("load")

    def prepare(self, _row: RowSpec, _progress: object) -> None:
        self._act("prepare")

    def forget(self, _row: RowSpec) -> None:
        self._act("forget")

    def sample(self, _row: RowSpec) -> int:
        self._act("sample")
        return self.machine.ns(self.side, self.machine.count(self.side, "sample"))

    def run(self, row: RowSpec, _progress: object) -> WorkerResult:
        machine = self.machine
        machine.asked.append((self.side, "run"))
        result = machine.ends.get((self.side, "run"))
        if result is None:
            changes = machine.changes | machine.of_side.get(self.side, {})
            tok_s = machine.tok_s(self.side, machine.count(self.side, "run"))
            result = measured(row, tok_s=tok_s, **changes)
        return WorkerResult(result=result, environment=ENVIRONMENT)

    def close(self) -> None:
        self.machine.asked.append((self.side, "close"))

"""What the tests of runs share."""

import pytest

from llama_perf.run import paired
from tests.correctness.support.made_up_workers import Machine, MadeUpWorker


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose workers all pairs of processes get."""
    one = Machine()
    monkeypatch.setattr(paired, "Worker", lambda **how: MadeUpWorker(one, **how))
    return one

"""What stands for CUDA's graphs on a CPU, which has none."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from llama_perf.llama import decode_step


@pytest.fixture
def graphs(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> list[object]:
    """The graphs made; each replay runs its work. On a card it is captured for real."""
    made: list[object] = []
    name = "card" if "card" in request.fixturenames else "device"

    def capture(work: Callable[[], None], *_generator: object) -> SimpleNamespace:
        made.append(work)
        return SimpleNamespace(replay=work)

    if request.getfixturevalue(name).type == "cpu":
        monkeypatch.setattr(decode_step, "warm_up", lambda work: work())
        monkeypatch.setattr(decode_step, "capture_graph", capture)
    return made

"""What stands for CUDA's graphs on a CPU, which has none."""

import operator
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from llama_perf.llama import decode_step


@pytest.fixture
def graphs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Makes graphs whose replay runs their work; on a card it is captured for real."""
    capture = Mock(side_effect=lambda work, *_generator: SimpleNamespace(replay=work))
    name = "card" if "card" in request.fixturenames else "device"
    if request.getfixturevalue(name).type == "cpu":
        monkeypatch.setattr(decode_step, "warm_up", operator.call)
        monkeypatch.setattr(decode_step, "capture_graph", capture)
    return capture

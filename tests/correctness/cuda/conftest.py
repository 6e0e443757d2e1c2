"""The device of a test, and the session that measures its rows."""

import pytest

from llama_perf.run.options import RunRequest
from llama_perf.run.session import Session
from tests.correctness.support.device_samples import MODELS, device, write_checkpoint

__all__ = ["device", "session"]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """One for all rows, so that the bandwidth is measured once."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, config in MODELS.items():
        write_checkpoint(folder / name, config)
    return Session([], options=RunRequest(checkpoints=folder))

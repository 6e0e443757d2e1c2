"""The tests' own watch for waiting: on a card it must not outlast its test."""

import warnings

import pytest
import torch

from llama_perf.measure.predict import predict
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.engines import SMALL
from tests.correctness.support.waiting import refusing_to_wait

CARD = torch.device("cuda")


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch's side: it warns the first time, when the mode is set already."""
    set_modes = ["default"]

    def set_mode(mode: str) -> None:
        set_modes.append(mode)
        if len(set_modes) == 2:
            warnings.warn(
                "Synchronization debug mode is a prototype feature and does not yet"
                " detect all synchronizing operations",
                stacklevel=2,
            )
        if len(set_modes) == 4:
            raise RuntimeError("no such mode")

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    return set_modes


def test_whatever_goes_wrong_the_next_test_may_wait(modes: list[str]) -> None:
    # The warning of a prototype stops nothing.
    with pytest.raises(KeyError, match="error"), refusing_to_wait(CARD):
        raise KeyError(modes[-1])
    assert modes == ["default", "error", "default"]
    with pytest.raises(RuntimeError, match="no such mode"), refusing_to_wait(CARD):
        raise AssertionError("it was not entered")
    assert modes == ["default", *["error", "default"] * 2]


def test_the_row_that_is_to_run_out_of_memory_has_a_mask_on_sdpa_alone() -> None:
    """`test_cuda.py` leaves it 64 MiB."""
    rows = {
        attention: RowSpec(model="small", cache_size=16384, attention=attention)
        for attention in ("decode", "sdpa")
    }
    peaks = {name: predict(row, SMALL).peak_bytes for name, row in rows.items()}
    assert peaks["sdpa"] - peaks["decode"] >= 16384**2

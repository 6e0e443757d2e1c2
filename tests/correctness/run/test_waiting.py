"""The tests' own watch for waiting: on a card it must not outlast its test."""

from __future__ import annotations

import warnings

import pytest
import torch

from llama_perf.measure.predict import predict
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.device_samples import SMALL
from tests.correctness.support.waiting import refusing_to_wait

CARD = torch.device("cuda")


class Card:
    """torch's side: it warns the first time, when the mode is set already."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mode = "default"
        self.warned = False
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", self.set)
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)

    def set(self, mode: str) -> None:
        self.mode = mode
        if not self.warned:
            self.warned = True
            warnings.warn(
                "Synchronization debug mode is a prototype feature and does not yet"
                " detect all synchronizing operations",
                stacklevel=2,
            )


@pytest.mark.filterwarnings("error")
def test_a_warning_of_a_prototype_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Card(monkeypatch)
    with refusing_to_wait(CARD):
        assert card.mode == "error"
    assert card.mode == "default"


def test_whatever_goes_wrong_the_next_test_may_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Card(monkeypatch)
    set_mode = card.set

    def broken(mode: str) -> None:
        set_mode(mode)
        if mode == "error":
            raise RuntimeError("no such mode")

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", broken)
    with pytest.raises(RuntimeError, match="no such mode"), refusing_to_wait(CARD):
        raise AssertionError("it was not entered")
    assert card.mode == "default"
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with pytest.raises(KeyError), refusing_to_wait(CARD):
        raise KeyError
    assert card.mode == "default"


def test_the_row_that_is_to_run_out_of_memory_has_a_mask_on_sdpa_alone() -> None:
    """`test_cuda.py` leaves it 64 MiB."""
    rows = {
        attention: RowSpec(model="small", cache_size=16384, attention=attention)
        for attention in ("decode", "sdpa")
    }
    peaks = {name: predict(row, SMALL).peak_bytes for name, row in rows.items()}
    assert peaks["sdpa"] - peaks["decode"] >= 16384**2

"""The tests' own watch for waiting: on a card it must not outlast its test."""

import warnings
from unittest.mock import Mock, call

import pytest
import torch

from llama_perf.measure.predict import predict
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.engines import SMALL, refusing_to_wait

CARD = torch.device("cuda")


def test_whatever_goes_wrong_the_next_test_may_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes = Mock(side_effect=[None, None, RuntimeError("no such mode"), None])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes)
    # What torch says when the mode is set already stops nothing.
    warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
    with pytest.raises(KeyError), refusing_to_wait(CARD):
        raise KeyError
    with pytest.raises(RuntimeError, match="no such mode"), refusing_to_wait(CARD):
        raise AssertionError("it was not entered")
    assert modes.call_args_list == [call("error"), call("default")] * 2


def test_the_row_that_is_to_run_out_of_memory_has_a_mask_on_sdpa_alone() -> None:
    """`test_cuda.py` leaves it 64 MiB."""
    rows = {
        attention: RowSpec(model="small", cache_size=16384, attention=attention)
        for attention in ("decode", "sdpa")
    }
    peaks = {name: predict(row, SMALL).peak_bytes for name, row in rows.items()}
    assert peaks["sdpa"] - peaks["decode"] >= 16384**2

"""The key of a run on several GPUs, with torch and NVML made up."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llama_perf.devices.links import card_links
from llama_perf.measure.environment import collect, of_rows
from llama_perf.rows.spec import RowSpec
from llama_perf.run.paired_run import with_row
from tests.correctness.support.record_samples import RANKS, compare, measured, report_of

pynvml = pytest.importorskip("pynvml")
CPU = torch.device("cpu")
ONE = RowSpec(model="70B")
FOUR = RowSpec(model="70B", tensor_parallel=4)


def make_up(monkeypatch: pytest.MonkeyPatch, cards: int, linked: set[str]) -> None:
    """GPUs "0", "1", ... of which those pairs in `linked`, as "01", have NVLink."""
    made = SimpleNamespace(**vars(pynvml))
    made.nvmlInit = lambda: None
    made.nvmlDeviceGetHandleByUUID = lambda uuid: uuid.removeprefix("GPU-")

    def status(one: str, other: str, _index: int) -> int:
        is_linked = one + other in linked
        return int(pynvml.NVML_P2P_STATUS_OK if is_linked else 1)

    made.nvmlDeviceGetP2PStatus = status
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=index)
    )


@pytest.mark.parametrize(
    ("cards", "linked", "links"),
    [
        (2, {"01"}, "nvlink"),
        (2, set(), "pcie"),
        (3, {"01", "02", "12"}, "nvlink"),
        (3, {"01"}, "mixed"),
        (1, set(), "unknown"),
    ],
)
def test_links(
    monkeypatch: pytest.MonkeyPatch, cards: int, linked: set[str], links: str
) -> None:
    make_up(monkeypatch, cards, linked)
    assert card_links() == links


def test_a_driver_that_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    make_up(monkeypatch, 2, set())

    def refuse(*_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(sys.modules["pynvml"], "nvmlDeviceGetP2PStatus", refuse)
    assert card_links() == "unknown"


def test_only_a_run_with_several_ranks_has_the_key_of_all_cards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = collect(CPU)
    make_up(monkeypatch, 8, set())
    assert of_rows(alone, [ONE]) == alone
    together = of_rows(alone, [ONE, FOUR])
    assert together.device_key == f"{alone.device_key}-x8-pcie"
    assert (together.cards, together.links) == (8, "pcie")
    assert of_rows(together, [FOUR]) == together
    on_cpu = RowSpec(model="70B", device="cpu", tensor_parallel=2)
    assert of_rows(alone, [on_cpu]) == alone


def test_a_comparison_of_two_revisions_has_the_same_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its workers do not know what other rows the run has."""
    make_up(monkeypatch, 2, {"01"})
    alone = collect(CPU)
    sides: Any = SimpleNamespace(environments={"head": alone, "base": alone})
    result = measured(FOUR, ranks=RANKS)
    report = with_row(report_of(), result, compare(result, None), sides)
    assert report.environment.device_key == f"{alone.device_key}-x2-nvlink"
    assert report.environment_changes == ()

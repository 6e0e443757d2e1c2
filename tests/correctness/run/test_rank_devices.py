"""What ranks need of a machine; without it their row is NOT_RUN, in one line."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llama_perf.errors import NotRunnable
from llama_perf.rows.spec import RowSpec
from llama_perf.run.rank_process import check_devices
from tests.correctness.support.errors import refusal

A100, H100 = "NVIDIA A100", "NVIDIA H100"
ROW = RowSpec(model="Llama-3.1-70B", tensor_parallel=2)
ON_CPU = RowSpec(
    model="Llama-3.1-70B", tensor_parallel=2, device="cpu", dtype="float32"
)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Have torch see GPUs of these names, and have NCCL."""

    def see(names: list[str]) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
        monkeypatch.setattr(torch.cuda, "get_device_name", names.__getitem__)
        monkeypatch.setattr(dist, "is_nccl_available", lambda: True)

    return see


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ([H100], "2 ranks need 2 GPUs, and torch sees 1"),
        ([A100, H100], f"2 ranks need GPUs of one kind, not {A100} and {H100}"),
    ],
)
def test_gpus_that_do_not_do(cards: Any, names: list[str], problem: str) -> None:
    cards(names)
    refused = refusal(check_devices, ROW, error=NotRunnable)
    assert refused == f"tensor_parallel: {problem}"


def test_gpus_that_do(cards: Any) -> None:
    # A third one is nobody's.
    cards([H100, H100, A100])
    check_devices(ROW)


@pytest.mark.parametrize(
    ("row", "library", "name"), [(ROW, "nccl", "NCCL"), (ON_CPU, "gloo", "gloo")]
)
def test_a_torch_without_the_library(
    cards: Any, monkeypatch: pytest.MonkeyPatch, row: RowSpec, library: str, name: str
) -> None:
    cards([H100, H100])
    check_devices(row)
    monkeypatch.setattr(dist, f"is_{library}_available", lambda: False)
    refused = refusal(check_devices, row, error=NotRunnable)
    assert refused == (
        f"tensor_parallel: 2 ranks need {name}, which this torch is built without"
    )

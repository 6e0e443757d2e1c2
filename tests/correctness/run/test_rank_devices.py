"""What ranks need of a machine; without it their row is NOT_RUN, in one line."""

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist

from llama_perf.errors import NotRunnable
from llama_perf.rows.spec import RowSpec
from llama_perf.run.rank_process import check_devices, join
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


@pytest.mark.parametrize(
    ("devices", "count", "backend", "chosen"),
    [
        (("cuda",), 3, "cpu:gloo,cuda:nccl", [2]),
        (("cpu",), 3, "gloo", []),
        # A run that has GPU rows as well, on a machine with fewer GPUs than ranks.
        (("cpu", "cuda"), 1, "gloo", []),
    ],
)
def test_what_a_rank_joins(
    cards: Any,
    monkeypatch: pytest.MonkeyPatch,
    devices: tuple[str, ...],
    count: int,
    backend: str,
    chosen: list[int],
) -> None:
    """It takes a GPU of its own where each rank has one, and always fewer cores."""
    cards([H100] * count)
    joined = Mock()
    set_devices: list[int] = []
    threads: list[int] = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(dist, "init_process_group", joined)
    monkeypatch.setattr(torch.cuda, "set_device", set_devices.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    join(devices)
    joined.assert_called_once_with(backend)
    assert (set_devices, threads) == (chosen, [2])

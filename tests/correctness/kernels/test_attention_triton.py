"""The attention kernel against dense attention: interpreted on a CPU, real on a card.

As in `test_triton`, the interpreter runs in a process of its own.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from llama_perf.kernels.cache_codes import CachedTensors
from llama_perf.kernels.triton import launch_attention
from tests.correctness.kernels.test_attention import (
    LENGTHS,
    LIMITS,
    SIZE,
    assert_attends,
    drawn,
    each_kind,
    sample_cache,
)
from tests.correctness.support.interpreter import device, test_in_the_interpreter

__all__ = ["device", "test_in_the_interpreter"]


def check(
    kind: str,
    group: int,
    lengths: list[int],
    device: torch.device,
    *,
    width: int = 64,
    dtype: torch.dtype = torch.float32,
) -> None:
    batch = len(lengths)
    cache, counter = sample_cache(kind, batch, 2, width, dtype=dtype)
    q, counter = drawn(batch, 1, 2 * group, width, dtype=dtype), counter.to(device)
    tensors = CachedTensors(*cache).map(lambda tensor: tensor.to(device))
    filled = torch.tensor(lengths, device=device)
    attended = launch_attention.split_attention(q.to(device), tensors, counter, filled)
    assert_attends(attended.cpu(), q, cache, *lengths)
    assert not counter.any(), "the next call would wait for nobody"


@each_kind
@pytest.mark.parametrize("length", LENGTHS)
def test_every_filled_length(kind: str, length: int, device: torch.device) -> None:
    for group, dtype in ((1, torch.float32), (3, torch.float16)):
        check(kind, group, [length], device, dtype=dtype)


@each_kind
@pytest.mark.parametrize("group", [1, 3, 4, 8])
def test_every_group_and_width(kind: str, group: int, device: torch.device) -> None:
    for width in (64, 128, 24):
        check(kind, group, [130], device, width=width)


@each_kind
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_every_dtype(kind: str, dtype: torch.dtype, device: torch.device) -> None:
    for group in (1, 4):
        check(kind, group, [200], device, width=128, dtype=dtype)


@each_kind
@pytest.mark.parametrize("programs", [1, 8, 264])
def test_a_ragged_batch_in_few_and_many_splits(
    kind: str, programs: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_attention, "_PROGRAMS", programs)
    monkeypatch.setattr(launch_attention, "multiprocessors", lambda: 1)
    for group in (1, 3):
        check(kind, group, [SIZE, 1, 65], device)

"""The attention kernel against dense attention: interpreted on a CPU, real on a card.

As in `test_triton`, the interpreter runs in a process of its own.
"""

from __future__ import annotations

import pytest
import torch

from llama_perf.kernels.cache_codes import CachedTensors
from tests.correctness.kernels.test_attention import (
    KINDS,
    LENGTHS,
    LIMITS,
    SIZE,
    dense,
    drawn,
    sample_cache,
    split_counter,
)
from tests.correctness.support.interpreter import device, test_in_the_interpreter

__all__ = ["device", "test_in_the_interpreter"]
GROUPS = (1, 3, 4, 8)
WIDTHS = (64, 128, 24)


def check(
    kind: str,
    dtype: torch.dtype,
    group: int,
    width: int,
    lengths: list[int],
    device: torch.device,
) -> None:
    from llama_perf.kernels.triton.launch_attention import split_attention

    batch = max(len(lengths), 1)
    cache = sample_cache(kind, dtype, batch=batch, heads=2, width=width)
    counter = split_counter(cache).to(device)
    q = drawn(batch, 1, 2 * group, width, seed=2, dtype=dtype)
    k, v, k_scale, v_scale = (
        None if tensor is None else tensor.to(device) for tensor in cache
    )
    assert k is not None
    assert v is not None
    tensors = CachedTensors(k=k, v=v, k_scale=k_scale, v_scale=v_scale)
    filled = torch.tensor(lengths, device=device)
    attended = split_attention(q.to(device), tensors, counter, filled).cpu()
    limit = LIMITS[dtype]
    expected = dense(q, cache, lengths)
    torch.testing.assert_close(attended.double(), expected, rtol=limit, atol=limit)
    assert not counter.any(), "the next call would wait for nobody"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_every_filled_length(kind: str, length: int, device: torch.device) -> None:
    for group, dtype in ((1, torch.float32), (3, torch.float16)):
        check(kind, dtype, group, 64, [length], device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", GROUPS)
def test_every_group_and_width(kind: str, group: int, device: torch.device) -> None:
    for width in WIDTHS:
        check(kind, torch.float32, group, width, [130], device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_every_dtype(kind: str, dtype: torch.dtype, device: torch.device) -> None:
    for group in (1, 4):
        check(kind, dtype, group, 128, [200], device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("programs", [1, 8, 264])
def test_a_ragged_batch_in_few_and_many_splits(
    kind: str, programs: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_perf.kernels.triton import launch_attention

    monkeypatch.setattr(launch_attention, "_PROGRAMS", programs)
    monkeypatch.setattr(launch_attention, "multiprocessors", lambda: 1)
    for group in (1, 3):
        check(kind, torch.float32, group, 64, [SIZE, 1, 65], device)

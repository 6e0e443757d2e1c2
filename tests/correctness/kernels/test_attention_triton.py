"""The attention kernel against dense attention: interpreted on a CPU, real on a card.

As in `test_triton`, the interpreter runs in a process of its own.
"""

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


Case = tuple[int, int, int, torch.dtype]
FLOAT = torch.float32
# (group, length, width, dtype): every filled length, group, width and dtype.
CASES: list[Case] = [
    *((1, length, 64, FLOAT) for length in LENGTHS),
    *((3, length, 64, torch.float16) for length in LENGTHS),
    *((group, 130, width, FLOAT) for group in (1, 3, 4, 8) for width in (64, 128, 24)),
    *((group, 200, 128, dtype) for group in (1, 4) for dtype in LIMITS),
]


def check(
    kind: str,
    group: int,
    lengths: list[int],
    device: torch.device,
    *,
    width: int = 64,
    dtype: torch.dtype = FLOAT,
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
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_sequence(kind: str, case: Case, device: torch.device) -> None:
    group, length, width, dtype = case
    check(kind, group, [length], device, width=width, dtype=dtype)


@each_kind
@pytest.mark.parametrize("programs", [1, 8, 264])
def test_a_ragged_batch_in_few_and_many_splits(
    kind: str, programs: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_attention, "_PROGRAMS", programs)
    monkeypatch.setattr(launch_attention, "multiprocessors", lambda: 1)
    for group in (1, 3):
        check(kind, group, [SIZE, 1, 65], device)

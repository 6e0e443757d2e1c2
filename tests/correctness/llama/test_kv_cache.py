from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llama_perf.llama.attention import CausalMask
from llama_perf.llama.kv_cache import KVCache
from tests.correctness.support.weights_samples import TINY

CPU = torch.device("cpu")
BATCH, SIZE = 2, 10


def cache() -> KVCache:
    return KVCache(
        TINY, batch_size=BATCH, cache_size=SIZE, dtype=torch.float32, device=CPU
    )


def values(length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, TINY.n_kv_heads, length, TINY.head_dim)
    return torch.randn(shape, generator=generator)


def test_it_holds_the_heads_of_keys_alone_in_the_dtype_asked_for() -> None:
    half = KVCache(TINY, batch_size=3, cache_size=5, dtype=torch.bfloat16, device=CPU)
    assert half.k_cache.shape == half.v_cache.shape == (3, TINY.n_kv_heads, 5, 8)
    assert half.k_cache.dtype == half.v_cache.dtype == torch.bfloat16


def test_an_update_writes_its_positions_and_no_other() -> None:
    updated = cache()
    updated.update(torch.arange(4), k := values(4, 0), v := values(4, 1))
    updated.update(torch.tensor([6]), late_k := values(1, 2), late_v := values(1, 3))
    for tensor, early, late in (
        (updated.k_cache, k, late_k),
        (updated.v_cache, v, late_v),
    ):
        assert torch.equal(tensor[:, :, :4], early)
        assert torch.equal(tensor[:, :, 6:7], late)
        assert not tensor[:, :, [4, 5, 7, 8, 9]].any()


def test_an_update_writes_in_place_over_what_was_there() -> None:
    updated = cache()
    before = updated.k_cache.data_ptr(), updated.v_cache.data_ptr()
    updated.update(torch.arange(4), values(4, 0), values(4, 1))
    updated.update(torch.tensor([2]), k := values(1, 2), v := values(1, 3))
    assert torch.equal(updated.k_cache[:, :, 2:3], k)
    assert torch.equal(updated.v_cache[:, :, 2:3], v)
    # A compiled step or a captured graph has the address in it.
    assert (updated.k_cache.data_ptr(), updated.v_cache.data_ptr()) == before


def test_a_cache_is_no_part_of_a_models_weights() -> None:
    assert not list(cache().parameters())
    assert not cache().state_dict()


@pytest.mark.parametrize("linear", [False, True], ids=["kept", "computed"])
def test_a_mask_shows_a_position_itself_and_what_came_before(linear: bool) -> None:
    rows = CausalMask(6, linear=linear, device=CPU).rows(torch.tensor([0, 3, 5]))
    assert rows.dtype == torch.bool
    assert rows.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1],
    ]

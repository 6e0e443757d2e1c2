import pytest
import torch
from torch import Tensor

from llama_perf.llama.attention import CausalMask, KVCache
from tests.correctness.support.weights_samples import TINY

CPU = torch.device("cpu")
BATCH, SIZE = 2, 10


def values(length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, TINY.n_kv_heads, length, TINY.head_dim)
    return torch.randn(shape, generator=generator).bfloat16()


def test_an_update_writes_its_positions_in_place_and_no_other() -> None:
    cache = KVCache(
        TINY, batch_size=BATCH, cache_size=SIZE, dtype=torch.bfloat16, device=CPU
    )
    # It is no part of a model's weights.
    assert not list(cache.parameters())
    assert not cache.state_dict()
    before = cache.k_cache.data_ptr(), cache.v_cache.data_ptr()
    early, one, again = ((values(n, n), values(n, n + 10)) for n in (4, 1, 2))
    cache.update(torch.arange(4), *early)
    cache.update(torch.tensor([6]), *one)
    cache.update(torch.tensor([2, 7]), *again)
    for index, tensor in enumerate((cache.k_cache, cache.v_cache)):
        # Of the heads of keys alone, in the dtype asked for.
        assert tensor.shape == (BATCH, TINY.n_kv_heads, SIZE, TINY.head_dim)
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor[:, :, [0, 1, 3]], early[index][:, :, [0, 1, 3]])
        assert torch.equal(tensor[:, :, 6:7], one[index])
        assert torch.equal(tensor[:, :, [2, 7]], again[index])
        assert not tensor[:, :, [4, 5, 8, 9]].any()
    # A compiled step or a captured graph has the address in it.
    assert (cache.k_cache.data_ptr(), cache.v_cache.data_ptr()) == before


@pytest.mark.parametrize("linear", [False, True], ids=["kept", "computed"])
def test_a_mask_shows_a_position_itself_and_what_came_before(linear: bool) -> None:
    rows = CausalMask(6, linear=linear, device=CPU)(torch.tensor([0, 3, 5]))
    assert rows.dtype == torch.bool
    assert torch.equal(rows, torch.ones(6, 6).tril().bool()[[0, 3, 5]])

"""A model that ranks share gives the logits of one process."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.reader import SyntheticWeights
from llama_perf.checkpoints.sharded import sharded
from llama_perf.devices.ranks import own_rank
from llama_perf.llama.config import ModelConfig
from tests.correctness.support.rank_pool import RankPool

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    dim=96,
    n_layers=2,
    n_heads=12,
    n_kv_heads=6,
    intermediate_size=192,
    vocab_size=96,
    head_dim=16,
    context=64,
)
"""It is shared by 2 and by 3 ranks."""
TOKENS = torch.arange(1, 8).view(1, -1)


def logits() -> Tensor:
    reader = SyntheticWeights(CONFIG, dtype=torch.float32, device=CPU)
    rank = own_rank()
    share = reader if rank.count == 1 else sharded(reader, rank)
    return build_model(share, dtype=torch.float32, device=CPU).logits(TOKENS)


@pytest.mark.parametrize("count", [2, 3])
def test_logits(rank_pool: Callable[[int], RankPool], count: int) -> None:
    wanted = logits()
    for shared in rank_pool(count).run(logits):
        torch.testing.assert_close(shared, wanted, rtol=1e-5, atol=1e-5)

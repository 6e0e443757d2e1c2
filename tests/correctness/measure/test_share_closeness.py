"""Unquantized weights on a rank: its share is read, and the logits are all ranks'."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llama_perf.checkpoints.find import open_weights
from llama_perf.checkpoints.load import OpenedModel, build_model
from llama_perf.measure.closeness import closeness_db
from llama_perf.measure.prepare import prepare_row
from llama_perf.measure.twin import Twin
from llama_perf.measure.value_check import warm_up_row
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.engines import CPU, tokens
from tests.correctness.support.rank_pool import RankPool
from tests.correctness.support.small_rows import checkpoints


def closeness(folder: Path, model: str) -> tuple[float | None, Tensor]:
    """Run on each rank: of an unquantized row, and its twin's logits."""
    row = RowSpec(
        model=model,
        device="cpu",
        dtype="float32",
        tensor_parallel=2,
        max_new_tokens=4,
        num_samples=1,
    )
    opened = OpenedModel(checkpoints=folder, keep=True)
    prepared = prepare_row(row, opened=opened)
    seen = warm_up_row(prepared, torch.Generator().manual_seed(0))
    reader = prepared.unquantized
    assert reader is not None
    assert reader.config.ranks == 2
    twin = Twin(reader, dtype=torch.float32, device=CPU)
    text = tokens(length=9)[0]
    states, _ = twin.states(text, text[:0], 9)
    return closeness_db(prepared, seen), twin.head()(states)


@pytest.mark.parametrize("model", ["own", "tied"])
def test_unquantized_weights_of_ranks(
    rank_pool: Callable[[int], RankPool], model: str
) -> None:
    folder = Path(checkpoints().name)
    whole = build_model(open_weights(folder / model), dtype=torch.float32, device=CPU)
    wanted = whole.logits(tokens(length=9)[:1])[0]
    for db, logits in rank_pool(2).run(closeness, folder, model):
        assert 100 < (db or 0.0) <= 200
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)

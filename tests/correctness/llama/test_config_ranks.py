"""Which numbers of ranks can share a model."""

from dataclasses import replace
from typing import Any

import pytest

from llama_perf.errors import SpecError
from llama_perf.llama.presets import preset
from llama_perf.measure.predict import predict
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.errors import refusal
from tests.correctness.support.shares import CONFIG


@pytest.mark.parametrize(
    ("field", "size", "ranks", "allowed"),
    [
        ("n_kv_heads", 4, 3, "1, 2, 4"),
        ("intermediate_size", 290, 4, "1, 2"),
        ("vocab_size", 97, 2, "1"),
    ],
)
def test_a_size_that_ranks_cannot_share_is_named(
    field: str, size: int, ranks: int, allowed: str
) -> None:
    sizes: dict[str, Any] = {"n_heads": 24, "n_kv_heads": 24, field: size}
    config = replace(CONFIG, **sizes)
    assert refusal(config.of_rank, ranks) == (
        f"tensor_parallel: {ranks} is not allowed; {field}, {size}, is no multiple of"
        f" it; allowed: {allowed}"
    )


def test_every_degree_that_is_allowed_shares_the_model() -> None:
    for count in (1, 2, 3, 6):
        share = CONFIG.of_rank(count)
        assert (share.ranks, share.n_heads * count) == (count, CONFIG.n_heads)


def test_groups_that_a_rank_s_columns_do_not_fill_are_named() -> None:
    fields: dict[str, Any] = {"device": "cpu", "dtype": "float32", "tensor_parallel": 3}
    row = RowSpec(model="SmolLM2-135M", quantization="sparse-marlin", **fields)
    assert refusal(predict, row, preset("SmolLM2-135M"), error=SpecError) == (
        "quantization: 'sparse-marlin' is not allowed; K = 192 of layers.0.attention.wo"
        " on a rank must be a multiple of 128"
    )

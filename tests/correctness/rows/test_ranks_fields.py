"""What a row of several ranks does not have is refused by its name."""

from typing import Any

import pytest

from llama_perf.errors import SpecError
from llama_perf.rows.spec import RowSpec


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tensor_parallel": 9}, "tensor_parallel: 9 is not allowed; allowed: 1 to 8"),
        ({"quantization": "autoquant"}, "quantization: 'autoquant' is not allowed; "),
        ({"fused": "persistent"}, "fused: 'persistent' is not allowed; "),
        ({"engine": "transformers"}, "engine: 'transformers' is not allowed; "),
    ],
)
def test_refusals(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as refused:
        RowSpec(**{"model": "70B", "tensor_parallel": 2, **fields})
    assert str(refused.value).startswith(words)


def test_one_rank_is_the_row_without_the_field() -> None:
    assert RowSpec(model="70B", tensor_parallel=1) == RowSpec(model="70B")

"""The memory of one rank of Llama-70B, predicted, and as it is packed."""

import pytest
import torch

from llama_perf.llama.presets import preset
from llama_perf.llama.transformer import Transformer
from llama_perf.measure.predict import model_bytes, predict
from llama_perf.quantize.apply import make_quantizer
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec

WHOLE = preset("Llama-3.1-70B")
META = torch.device("meta")


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize(
    "scheme", [None, "int8wo", "int4wo-64", "fp6", "sparse-marlin"]
)
def test_weights_are_those_that_a_rank_packs(scheme: str | None, ranks: int) -> None:
    share = WHOLE.first_layers(2).of_rank(ranks)
    with META:
        model = Transformer(share).to(torch.bfloat16)
    if scheme is not None:
        quantize = make_quantizer(
            scheme, kernels="native", device=META, dtype=torch.bfloat16
        )
        quantize(model, "model")
    predicted = model_bytes(share, scheme, dtype=torch.bfloat16, device="cuda")
    assert model.weight_bytes() == predicted


def test_ranks_share_everything_but_the_embedding_and_norms() -> None:
    whole, eighth = (
        predict(RowSpec(model="Llama-3.1-70B", tensor_parallel=ranks), WHOLE)
        for ranks in (None, 8)
    )
    norms = (2 * WHOLE.n_layers + 1) * WHOLE.dim * 2
    shared = whole.model_size_bytes - norms
    assert eighth.model_size_bytes == shared // 8 + norms
    assert eighth.embedding_bytes == whole.embedding_bytes
    assert eighth.cache_bytes < whole.cache_bytes / 7


def test_each_row_of_the_set_has_a_prediction() -> None:
    rows = selection.load_set("tensor-parallel")
    assert {row.ranks for row in rows} == {2, 4, 8}
    for row in rows:
        assert predict(row, preset(row.model)).peak_bytes < 141e9, row.id

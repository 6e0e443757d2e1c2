"""The memory of one rank of Llama-70B, predicted."""

from llama_perf.llama.presets import preset
from llama_perf.measure.predict import predict
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from scripts.doc_tables import ranks

WHOLE = preset("Llama-3.1-70B")


def test_ranks_share_everything_but_the_embedding_and_norms() -> None:
    whole, eighth = (
        predict(RowSpec(model="Llama-3.1-70B", tensor_parallel=count), WHOLE)
        for count in (None, 8)
    )
    norms = (2 * WHOLE.n_layers + 1) * WHOLE.dim * 2
    shared = whole.model_size_bytes - norms
    assert eighth.model_size_bytes == shared // 8 + norms
    assert eighth.embedding_bytes == whole.embedding_bytes
    assert eighth.cache_bytes < whole.cache_bytes / 7


def test_the_table_of_the_docs_is_what_is_predicted() -> None:
    documented = ranks.TABLE.documented()
    assert documented == {key: ranks.TABLE.draw(*key)[0] for key in ranks.rows()}


def test_each_row_of_the_set_has_a_prediction() -> None:
    rows = selection.load_set("tensor-parallel")
    assert {row.ranks for row in rows} == {2, 4, 8}
    for row in rows:
        assert predict(row, preset(row.model)).peak_bytes < 141e9, row.id

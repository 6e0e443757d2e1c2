"""What of a row's peak its weights and caches are."""

from dataclasses import replace

import pytest
import torch

from llama_perf.measure.prepare import predict_row, prepare_row
from llama_perf.measure.timing import RowMemoryMeter, measure_row
from llama_perf.rows.spec import RowSpec

CPU = torch.device("cpu")
ROW = RowSpec(model="stories15M", dtype="float32", device="cpu")
ROW = replace(ROW, max_new_tokens=4, num_samples=1, cache_size=64)


@pytest.mark.parametrize(
    "change", [{}, {"quantization": "int8wo"}, {"kv_cache_quantization": True}], ids=str
)
def test_weights_caches_and_workspace_are_the_peak(change: dict[str, object]) -> None:
    row = replace(ROW, **change)  # type: ignore[arg-type]
    prepared = prepare_row(row)
    measured = measure_row(prepared, meter=RowMemoryMeter(CPU), with_work=True)
    parts, predicted = measured.memory, predict_row(row)
    assert parts is not None
    weights = predicted.model_size_bytes + predicted.embedding_bytes
    # Beside them the model has the rotary frequencies.
    assert 0 <= parts.weights_bytes - weights < 1000
    assert parts.cache_bytes == predicted.cache_bytes
    rest = (measured.peak_allocated_bytes or 0) - parts.weights_bytes
    workspace = rest - parts.cache_bytes
    assert workspace == pytest.approx(predicted.working_bytes, rel=0.05, abs=1_000_000)
    assert 0 < workspace < weights

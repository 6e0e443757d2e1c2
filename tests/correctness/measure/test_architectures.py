"""Rows of other architectures: from a checkpoint to values, and to a saved model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf import load_model, quantize_model, save_model
from llama_perf.kernels import cpp_library
from llama_perf.kernels.attention import prefill_attention
from llama_perf.llama.attention import KVCache
from llama_perf.measure.live_bytes import LiveBytes
from llama_perf.measure.predict import predict
from llama_perf.measure.prepare import prepare_row
from llama_perf.measure.value_check import check_row_values, warm_up_row
from llama_perf.measure.working_bytes import inside_prefill_bytes
from llama_perf.rows.spec import RowSpec
from tests.correctness.support import architectures
from tests.correctness.support.architectures import IDS, MODELS
from tests.correctness.support.weights_samples import TINY

ROW = RowSpec(
    model="tiny",
    quantization="int8wo",
    dtype="float32",
    device="cpu",
    # Longer than a window.
    prompt_length=8,
    max_new_tokens=6,
)
ROWS: dict[str, dict[str, Any]] = {
    "decode": {},
    "fused": {"fused": True, "kv_cache_quantization": "int8"},
    "sdpa": {"attention": "sdpa", "kv_cache_quantization": "fp8", "batch_size": 2},
}
NAMES = ["mistral with a window", "qwen2", "qwen3 with all it may have"]


@pytest.mark.parametrize("path", ROWS)
@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_checked_and_takes_what_is_predicted(
    name: str, path: str, tmp_path: Path
) -> None:
    if path == "fused" and cpp_library.load() is not None:
        pytest.skip("there is no C++ compiler")
    architectures.save(name, tmp_path / "tiny")
    row = replace(ROW, **ROWS[path])
    prepared = prepare_row(row, checkpoints=tmp_path)
    generator = torch.Generator().manual_seed(0)
    checked = check_row_values(prepared, warm_up_row(prepared, generator))
    assert checked.tokens > 0
    predicted = predict(row, prepared.engine.model.config)
    assert predicted.model_size_bytes == prepared.model_size_bytes
    caches = sum(tensor.nbytes for tensor in prepared.engine.cache_tensors())
    assert predicted.cache_bytes == caches


@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
def test_attention_in_windows_takes_what_is_predicted(kind: str | None) -> None:
    config = replace(TINY, n_layers=1, sliding_window=100)
    row = replace(ROW, prompt_length=700, fill=500, kv_cache_quantization=kind or False)
    how: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
    how |= {"batch_size": 1, "cache_size": row.allocated_positions}
    cache = KVCache(config, **how, kind=kind)
    held = sum(buffer.nbytes for buffer in cache.buffers())
    q = torch.randn(1, 512, config.n_heads, config.head_dim)
    with LiveBytes("cpu") as live:
        prefill_attention._init_fn(q, *cache.tensors, 1200, 100)
    predicted = inside_prefill_bytes(config, row) + q.nbytes
    # The cache's views are handed out. What the operator of the library takes inside,
    # which is in the prediction, is not seen.
    seen = live.peak - held
    assert 0.4 * predicted < seen < predicted


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_computes_the_same(name: str, tmp_path: Path) -> None:
    model = load_model(architectures.save(name, tmp_path / "theirs"))
    quantize_model(model, "int8wo")
    again = load_model(save_model(model, tmp_path / "ours"))
    assert again.config == model.config
    assert torch.equal(again.logits(IDS), model.logits(IDS))

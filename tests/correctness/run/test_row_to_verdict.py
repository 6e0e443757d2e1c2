"""A file of rows to verdicts: a Qwen3, a Mistral with a window, a config of torchao."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from llama_perf.results.closeness_report import joined
from llama_perf.results.measurement import Ceiling
from llama_perf.results.run import Status, Verdict
from llama_perf.rows.selection import load_file
from llama_perf.run.options import RunRequest
from llama_perf.run.session import Session
from tests.correctness.support import architectures, record_samples

ROWS = """
[defaults]
device = "cpu"
dtype = "float32"
quantization = "int8wo"
# Longer than the window of 6.
prompt_length = 8
max_new_tokens = 9
num_samples = 1

[[row]]
model = "Qwen3-tiny"
fused = true

[[row]]
model = "Mistral-tiny"
kv_cache_quantization = "int8"

[[row]]
model = "Qwen3-tiny"
quantization = "torchao:Int8WeightOnlyConfig(granularity=PerGroup(32))"
name = "int8-g32"
modules = "*.feed_forward.*"
"""
MODELS = {"Qwen3-tiny": "qwen3", "Mistral-tiny": "mistral with a window"}


def test_rows_of_a_file_are_judged_with_their_closeness(tmp_path: Path) -> None:
    for name, model in MODELS.items():
        architectures.save(model, tmp_path / name)
    (tmp_path / "rows.toml").write_text(ROWS, encoding="utf-8")
    session = Session(["cpu"], options=RunRequest(checkpoints=tmp_path))
    session.ceiling = cache(lambda _device: Ceiling(read_gb_s=20.0))
    for row in load_file(tmp_path / "rows.toml"):
        result = session.run_row(row)
        assert result.status is Status.MEASURED, result.reason
        result = joined(result, session.closeness(row, tokens=24))
        assert result.measurement is not None
        figures = result.measurement.closeness
        assert figures is not None
        # With a window one shorter, or without norms, below 5 dB would be left.
        assert figures.db > 15
        before = record_samples.baseline_of(result)
        judged = record_samples.compare(result, before)
        assert judged.verdict is Verdict.SAME, judged.reason
        # The same figures, with a closeness that got lost.
        worse = replace(figures, db=figures.db - 9)
        lost = replace(result.measurement, closeness=worse)
        judged = record_samples.compare(replace(result, measurement=lost), before)
        assert judged.verdict is Verdict.WORSE

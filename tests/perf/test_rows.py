"""Every selected row: run, recorded, compared. `llama-perf rows` lists them."""

from typing import Any

import pytest

from llama_perf.pytest_plugin.plugin import LlamaPerfPlugin, sample_clock


@pytest.mark.benchmark(timer=sample_clock)
def test_row(llama_row: str, benchmark: Any, row_runner: LlamaPerfPlugin) -> None:
    row_runner.run(llama_row, benchmark)

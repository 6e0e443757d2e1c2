"""A row that a session builds again, for the next pair."""

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from llama_perf.checkpoints import load
from llama_perf.measure.prepare import PreparedRow, prepare_row
from llama_perf.measure.timing import time_row
from llama_perf.rows.spec import RowSpec
from llama_perf.run import session as module
from llama_perf.run.options import RunRequest
from llama_perf.run.session import Session

ROW = RowSpec(
    model="stories15M",
    dtype="float32",
    device="cpu",
    quantization="int8wo",
    max_new_tokens=4,
    num_samples=1,
)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Counts how often a row is built from the model's weights."""
    build = Mock(side_effect=prepare_row)
    monkeypatch.setattr(module, "prepare_row", build)
    return build


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"kernels": "torchao"},
        {"quantization": "uintx-4-32"},
        {"kv_cache_quantization": True, "cache_size": 64, "fill": 20},
    ],
)
def test_a_copy_of_a_row_generates_the_same_in_memory_of_its_own(
    changed: dict[str, Any],
) -> None:
    def tokens(prepared: PreparedRow) -> torch.Tensor:
        return time_row(prepared, torch.Generator().manual_seed(0)).tokens

    first = prepare_row(replace(ROW, **changed))
    wanted = tokens(first)
    copied = first.copy()
    assert copied.row == first.row
    with torch.no_grad():
        first.engine.architecture.tok_embeddings.weight.zero_()
    assert not torch.equal(tokens(first), wanted)
    assert torch.equal(tokens(copied), wanted)


def test_a_row_that_is_built_again_is_not_quantized_again(build: Mock) -> None:
    session = Session(["cpu"], options=RunRequest())
    for _ in range(3):
        assert session.prepare(ROW) == ()
        assert isinstance(session.sample(), tuple)
        assert session.forget() == ()
    assert build.call_count == 1
    assert session.prepare(replace(ROW, max_new_tokens=3)) == ()
    assert build.call_count == 2
    # Nothing of another row is there while a row's memory is measured.
    assert session.run_row(ROW).measurement is not None
    assert session.prepare(ROW) == ()
    assert build.call_count == 4


@pytest.mark.parametrize(
    ("quantization", "kept_bytes"), [(None, load.KEPT_BYTES), ("int8wo", 1000)]
)
def test_what_is_large_or_not_quantized_is_built_anew(
    quantization: str | None,
    kept_bytes: int,
    build: Mock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load, "KEPT_BYTES", kept_bytes)
    session = Session(["cpu"], options=RunRequest())
    for _ in range(2):
        assert session.prepare(replace(ROW, quantization=quantization)) == ()
    assert build.call_count == 2

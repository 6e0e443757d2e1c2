"""What rows of engine "transformers" may say, and where they cannot run."""

from pathlib import Path
from typing import Any

import pytest

from llama_perf import quantize_model, save_model
from llama_perf.errors import NotRunnable, UserError
from llama_perf.measure.prepare import check_runnable, prepare_row
from llama_perf.peers import transformers_model
from llama_perf.results.run import Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import RunRequest
from llama_perf.run.session import Session
from tests.correctness.support.engines import SMALL, new_model, small_checkpoints
from tests.correctness.support.errors import refusal

FIELDS: dict[str, Any] = {"model": "small", "engine": "transformers"}
CPU: dict[str, Any] = {**FIELDS, "device": "cpu", "dtype": "float32"}
IT = "is not allowed; engine 'transformers'"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": "sdpa"}, f"'sdpa' {IT}: it has its own; leave it out"),
        ({"fused": True}, f"true {IT}: it has no fused kernels; leave it out"),
        (
            {"compile_prefill": True, "compile": True},
            f"true {IT}: it compiles no prompt; leave it out",
        ),
        (
            {"kv_cache_quantization": "fp8"},
            f"'fp8' {IT}: its static cache has the row's dtype; leave it out",
        ),
        ({"linear_causal_mask": True}, f"true {IT}: it has its own mask; leave it out"),
        ({"fill": 64}, f"64 {IT}: it fills nothing before the prompt; leave it out"),
        (
            {"ragged": True, "batch_size": 2},
            f"true {IT}: its prompts have one length; leave it out",
        ),
        ({"capture": True}, f"true {IT} captures what it compiles: set compile = true"),
        (
            {"quantization": "autoquant"},
            f"'autoquant' {IT}: it times products of the other engine",
        ),
    ],
    ids=str,
)
def test_a_field_that_it_does_not_have_is_refused_by_name(
    fields: dict[str, Any], message: str
) -> None:
    (name, *_) = fields
    assert refusal(RowSpec, **FIELDS, **fields) == f"{name}: {message}"


def test_its_id_names_it_and_other_ids_stay() -> None:
    row = RowSpec(**FIELDS, compile=True, capture=True, cache_size=512, batch_size=4)
    assert row.id == "small.none.bf16.compile.transformers.capture.cache-512.batch-4"
    message = refusal(RowSpec, model="small", engine="vllm")
    assert message == (
        "engine: 'vllm' is not allowed; allowed: llama-perf, transformers"
    )


def test_a_row_without_transformers_does_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transformers_model, "package_version", lambda _name: None)
    transformers_model.import_transformers.cache_clear()
    reason = "transformers is not installed (pip install transformers)"
    row = RowSpec(**CPU, max_new_tokens=4)
    assert refusal(check_runnable, row, error=NotRunnable) == reason
    request = RunRequest(checkpoints=small_checkpoints())
    result = Session(["cpu"], options=request).run_row(row)
    assert (result.status, result.reason) == (Status.NOT_RUN, reason)
    transformers_model.import_transformers.cache_clear()


def test_what_it_cannot_do_with_a_model_is_said_in_one_line(tmp_path: Path) -> None:
    row = RowSpec(**CPU, max_new_tokens=4)
    message = refusal(
        prepare_row, row, checkpoints=small_checkpoints(), slowdown=0.5, error=UserError
    )
    assert message == "inject-slowdown: engine 'transformers' cannot repeat its steps"
    save_model(quantize_model(new_model(SMALL), "int8wo"), tmp_path / "small")
    message = refusal(prepare_row, row, checkpoints=tmp_path, error=NotRunnable)
    assert message == (
        "engine transformers runs unquantized checkpoints, and quantizes them itself;"
        " this one is int8wo"
    )

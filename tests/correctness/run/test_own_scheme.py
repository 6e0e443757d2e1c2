"""Rows of a config of the user's own: measured, or ended by what breaks in it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from llama_perf import save_model
from llama_perf.errors import ValuesError
from llama_perf.measure.prepare import prepare_row
from llama_perf.measure.value_check import check_row_values, warm_up_row
from llama_perf.results.measurement import Ceiling
from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import RunRequest
from llama_perf.run.session import Session
from tests.correctness.support import engines
from tests.correctness.support.own_package import CONFIG, NAME, write_package

ROW = RowSpec(
    model="small",
    quantization=f"{CONFIG}()",
    name="codes-8",
    dtype="float32",
    device="cpu",
    max_new_tokens=9,
    num_samples=1,
)
PLACE = f"at {NAME}/weights.py:"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """With a small model and the package, both of this module's tests alone."""
    folder = tmp_path_factory.mktemp("run")
    save_model(engines.new_model(engines.SMALL), folder / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(write_package(folder))
        session = Session(["cpu"], options=RunRequest(checkpoints=folder))
        session.ceiling = cache(lambda _device: Ceiling(read_gb_s=20.0))
        yield session


def ended(session: Session, call: str, **fields: Any) -> RowResult:
    result = session.run_row(replace(ROW, quantization=call, **fields))
    assert "\n" not in (result.reason or "")
    return result


def test_a_row_is_measured_and_prepared_again_for_pairs(session: Session) -> None:
    result = session.run_row(ROW)
    assert result.status is Status.MEASURED, result.reason
    assert result.id == "small.codes-8.own.fp32.cpu.eager.new-9.samples-1"
    now = result.measurement
    assert now is not None
    assert now.check is not None
    # What activations are rounded to is not known of such a scheme.
    assert (now.check.least_db, now.check.against) == (3.0, "dequantized weights")
    for _ in range(2):
        assert session.prepare(ROW) == ()
        assert isinstance(session.sample(), tuple)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_breaks_while_it_generates_ends_the_row_and_not_the_next(
    session: Session, compiled: bool
) -> None:
    call = f"{CONFIG}(breaks='forward')"
    result = ended(session, call, compile=compiled)
    assert result.status is Status.INVALID
    assert result.reason is not None
    start, _, rest = result.reason.partition(PLACE)
    assert start == "ValueError: no kernel for it, "
    assert rest.endswith(" in multiplied")
    if compiled:
        return
    known = ended(session, call, upstream_issue="pytorch/ao#1")
    assert known.status is Status.NOT_RUN
    assert known.reason == f"broken upstream, pytorch/ao#1: {result.reason}"
    assert session.run_row(ROW).status is Status.MEASURED


def test_operators_that_are_wrong_themselves_are_found_out(session: Session) -> None:
    row = replace(ROW, quantization=f"{CONFIG}(breaks='values')")
    prepared = prepare_row(row, checkpoints=session.options.checkpoints)
    observed = warm_up_row(prepared, torch.Generator().manual_seed(0))
    # Compared with the operators of a compiled row, its values would be right.
    compiled = replace(prepared, row=replace(row, compile=True))
    with pytest.raises(ValuesError, match="noise against the dequantized weights"):
        check_row_values(compiled, observed)


@pytest.mark.parametrize(
    ("call", "status", "reason"),
    [
        (f"{CONFIG}(bits=9)", Status.INVALID, "ValueError: 9 bits do not fit a byte,"),
        (f"{CONFIG}(breaks='handler')", Status.INVALID, "ArithmeticError: no scale,"),
        (f"{NAME}.broken:X()", Status.INVALID, "FileNotFoundError: [Errno 2] No such"),
        (f"{NAME}.weights:X()", Status.INVALID, "quantization: "),
        (f"{CONFIG}(breaks='package')", Status.NOT_RUN, "ModuleNotFoundError: No mod"),
        ("nobodys.x:Y()", Status.NOT_RUN, "nobodys.x:Y(): the package nobodys is not"),
    ],
)
def test_what_is_wrong_before_anything_is_measured(
    session: Session, call: str, status: Status, reason: str
) -> None:
    result = ended(session, call)
    assert result.status is status
    assert result.reason is not None
    assert result.reason.startswith(reason)
    assert (PLACE in result.reason) is (CONFIG in call)


def test_modules_of_each_kind_of_kernels_run(session: Session) -> None:
    sizes = []
    int8 = replace(ROW, quantization="int8wo", kernels="native", name=None)
    for row in (replace(int8, fused=True), replace(int8, kernels="torchao"), ROW):
        result = session.run_row(replace(row, modules="*.feed_forward.*"))
        assert result.status is Status.MEASURED, result.reason
        assert ".modules-feed_forward." in result.id
        now = result.measurement
        assert now is not None
        sizes.append(now.model_size_bytes)
    plain = session.run_row(ROW.unquantized).measurement
    assert plain is not None
    # Three of a layer's linears in a byte instead of four, and their scales.
    saved = 2 * 3 * 256 * 512 * 3
    assert all(0.95 * saved < plain.model_size_bytes - size < saved for size in sizes)
    refused = session.run_row(replace(ROW, modules="*.mlp.*"))
    assert refused.status is Status.INVALID
    assert "'*.mlp.*' matches no linear of the model" in (refused.reason or "")
    # Gate and up are one product of a fused layer on a GPU, and two on a CPU.
    gate = session.run_row(replace(int8, fused=True, modules="*.w1"))
    assert gate.status is Status.MEASURED

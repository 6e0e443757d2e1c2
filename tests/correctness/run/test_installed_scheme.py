"""Rows of schemes that an installed package adds, and what breaks in them."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf import save_model
from llama_perf.llama.engine import Engine
from llama_perf.llama.fused_cpu import FusedCpuStep
from llama_perf.measure.prepare import prepare_row
from llama_perf.measure.value_check import damaged_scale
from llama_perf.quantize import plugins
from llama_perf.quantize.apply import quantize_model
from llama_perf.results.measurement import Ceiling
from llama_perf.results.run import RowResult, Status
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import RunRequest
from llama_perf.run.session import Session
from tests.correctness.support import engines
from tests.correctness.support.errors import refusal
from tests.correctness.support.packages import installer

MODULE = """
from llama_perf import OwnScheme
from llama_perf.llama.fused_product import in_plain_torch
from llama_perf.quantize.packed_tensor import NativeConfig
from llama_perf.quantize.row_scaled import Int8Weight
from llama_perf.rows.schemes import Scheme
from torchao.quantization import Int8WeightOnlyConfig

def tripled(x, weights, **around):
    return in_plain_torch(3 * x, weights, **around)

def breaks(x, weights, **around):
    raise RuntimeError("no kernel")

def no_config(device, dtype):
    raise RuntimeError("no config")

TORCHAO = Int8WeightOnlyConfig(set_inductor_config=False)
PACKABLE = OwnScheme(config=NativeConfig(Scheme.parse("int8wo"), Int8Weight))
PLAIN = OwnScheme(config=TORCHAO)
HOOKED = OwnScheme(config=TORCHAO, fused_product=in_plain_torch)
ROUNDS = OwnScheme(config=TORCHAO, rounds_activations=True)
TRIPLED = OwnScheme(config=TORCHAO, fused_product=tripled)
BREAKS = OwnScheme(config=TORCHAO, fused_product=breaks)
NONE = OwnScheme(config=no_config)
"""
NAMES = ("packable", "plain", "hooked", "rounds", "tripled", "breaks", "none-made")
ROW = RowSpec(
    model="small",
    quantization="hooked",
    kernels="own",
    dtype="float32",
    device="cpu",
    fused=True,
    max_new_tokens=4,
    num_samples=1,
)


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    save_model(engines.new_model(engines.SMALL), tmp_path / "small")
    plugins.load.cache_clear()
    values = {name: f"eight.kinds:{name.partition('-')[0].upper()}" for name in NAMES}
    install = installer(tmp_path, monkeypatch)
    install("eight", schemes=values, files={"kinds.py": MODULE})
    session = Session(["cpu"], options=RunRequest(checkpoints=tmp_path))
    session.ceiling = cache(lambda _device: Ceiling(read_gb_s=20.0))
    return session


def test_a_row_runs_with_its_kernel_or_in_a_built_in_format(session: Session) -> None:
    def ended(scheme: str, **fields: Any) -> RowResult:
        result = session.run_row(replace(ROW, quantization=scheme, **fields))
        assert "\n" not in (result.reason or "")
        return result

    def least_db(scheme: str, **fields: Any) -> float:
        result = ended(scheme, **fields)
        assert result.status is Status.MEASURED, result.reason
        assert result.measurement is not None
        check = result.measurement.check
        assert check is not None
        assert check.against == "dequantized weights"
        assert check.signal_to_noise_db > 60
        return check.least_db

    assert least_db("hooked") == least_db("packable") == 60
    assert least_db("rounds", fused=False) == 8
    folder = session.options.checkpoints
    packable = prepare_row(replace(ROW, quantization="packable"), checkpoints=folder)
    assert isinstance(packable.engine, Engine)
    assert isinstance(packable.engine._fused, FusedCpuStep)
    plain = ended("plain")
    assert plain.status is Status.NOT_RUN
    assert plain.reason == "fused: output.weight, Int8Tensor, has no such kernel"
    # What is wrong ends its own row.
    results = [ended(name) for name in ("tripled", "breaks", "none-made")]
    assert {result.status for result in results} == {Status.INVALID}
    tripled, breaks, none = (str(result.reason) for result in results)
    assert tripled.startswith("check: its logits have ")
    place = "at eight/kinds.py:"
    assert breaks == f"RuntimeError: no kernel, {place}13 in breaks"
    assert none == f"RuntimeError: no config, {place}16 in no_config"
    absent = ended("absent")
    assert absent.status is Status.NOT_RUN
    assert str(absent.reason).startswith("scheme absent: no installed package has it")


@pytest.mark.usefixtures("session")
def test_a_model_in_such_a_scheme_is_not_saved(tmp_path: Path) -> None:
    model = quantize_model(engines.new_model(engines.SMALL), "plain")
    message = refusal(save_model, model, tmp_path / "saved")
    reason = "a file may not ask for a package's code to be imported"
    assert message == f"scheme: 'plain' is not allowed; {reason}"


def test_a_weight_without_a_scale_cannot_be_damaged() -> None:
    model: Any = engines.new_model(engines.SMALL)
    bare: Any = type("Bare", (torch.Tensor,), {})
    weight = torch.nn.Parameter(torch.zeros(1).as_subclass(bare))
    model.layers[0].attention.wo.weight = weight
    message = refusal(damaged_scale(engines.engine(model)).__enter__)
    assert message.startswith("inject-damage: 'Bare' is not allowed; it needs weights")

"""Rows on bitsandbytes: its own operators, sizes, and where it cannot run."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llama_perf import quantize_model, save_model
from llama_perf.checkpoints.save import check_scheme_savable
from llama_perf.errors import NotRunnable, SaveError, SpecError
from llama_perf.measure.predict import model_bytes
from llama_perf.measure.prepare import check_runnable
from llama_perf.measure.value_check import signal_to_noise_db
from llama_perf.quantize import libraries
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.engines import SMALL, new_model
from tests.correctness.support.errors import refusal
from tests.correctness.support.schemes import cpu_config

SCHEMES = ("nf4", "fp4", "int8dq", "llm-int8")
ROW: dict[str, Any] = {"model": "stories15M", "kernels": "bitsandbytes"}
ROW |= {"device": "cpu", "dtype": "float32"}


@pytest.fixture(params=[True, False], ids=["fast", "plain"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """One that multiplies four bits in bfloat16, where this one can, and another."""
    functional: Any = libraries.import_library("bitsandbytes").functional
    if not request.param:
        monkeypatch.setattr(functional, "has_avx512bf16", lambda: False)
        # Linear4bit has a name of its own for it.
        modules = sys.modules["bitsandbytes.nn.modules"]
        monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)
    return bool(functional.has_avx512bf16())


def quantized(weight: Tensor, scheme: str) -> Any:
    """A linear's weight, as rows have it."""
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False, dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    from torchao.quantization import quantize_

    quantize_(nn.ModuleDict({"linear": linear}), cpu_config(scheme, "bitsandbytes"))
    return linear.weight


def its_own_module(weight: Tensor, scheme: str) -> nn.Module:
    """bitsandbytes' linear with this weight, in inference."""
    modules: Any = libraries.import_library("bitsandbytes").nn
    rows, columns = weight.shape
    if scheme in ("nf4", "fp4"):
        linear = modules.Linear4bit(
            columns, rows, bias=False, quant_type=scheme, compress_statistics=False
        )
        linear.weight = modules.Params4bit(
            weight.clone(), quant_type=scheme, compress_statistics=False, module=linear
        )
        # It fails with other rows, so ours take the plain product.
        linear.support_avx512bf16_for_cpu &= rows % 32 == 0
    else:
        linear = modules.Linear8bitLt(
            columns,
            rows,
            bias=False,
            has_fp16_weights=False,
            threshold=6.0 if scheme == "llm-int8" else 0.0,
        )
        linear.weight = modules.Int8Params(weight.clone(), requires_grad=False)
    moved: nn.Module = linear.to("cpu").eval()
    return moved


# 40 rows are no multiple of what the fast product takes at a time.
@pytest.mark.parametrize("rows", [64, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_product_is_that_of_its_own_linear_and_close_to_the_weights(
    scheme: str, dtype: torch.dtype, rows: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = (torch.randn(rows, 128, generator=generator) * 0.02).to(dtype)
    x = torch.randn(2, 3, 128, generator=generator)
    # Two outliers, which llm-int8 keeps.
    x[0, 1, 5], x[1, 2, 70] = 20.0, -9.0
    x = x.to(dtype)
    packed = quantized(weight, scheme)
    actual = nn.functional.linear(x, packed)
    assert actual.shape == (2, 3, rows)
    assert actual.dtype == dtype
    assert torch.equal(actual, its_own_module(weight, scheme)(x))
    wide: Tensor = packed.dequantize().float()
    assert packed.dequantize().dtype == dtype
    assert signal_to_noise_db(weight.float(), wide) > 15
    least_db = 30 if scheme in ("nf4", "fp4", "llm-int8") else 20
    assert signal_to_noise_db(x.float() @ wide.T, actual.float()) > least_db


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_linear_is_traced_whole_and_the_size_is_predicted(
    scheme: str, processor: bool
) -> None:
    model = quantize_model(new_model(SMALL), scheme, kernels="bitsandbytes")
    assert model.origin is not None
    assert model.origin.kernels == "bitsandbytes"
    predicted = model_bytes(
        SMALL, scheme, kernels="bitsandbytes", dtype=torch.float32, device="cpu"
    )
    if processor and scheme in ("nf4", "fp4"):
        # Its scales take two bytes instead of four; a table of 64 bytes comes along.
        weights = sum(
            linear.weight.numel()
            for linear in model.modules()
            if isinstance(linear, nn.Linear)
        )
        n_linears = 5 * SMALL.n_layers + 1
        predicted += 64 * n_linears - 2 * weights // 64
    assert model.weight_bytes() == predicted
    if scheme == "llm-int8":
        return
    compiled: Any = torch.compile(model.output, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 1, SMALL.dim)
    assert torch.equal(compiled(x), model.output(x))


def test_what_cannot_run_is_said_in_one_line(tmp_path: Path) -> None:
    row = RowSpec(**ROW, quantization="llm-int8", compile=True)
    assert refusal(check_runnable, row, error=NotRunnable) == (
        "llm-int8 chooses columns by their values, which torch.compile cannot: leave"
        " out compile"
    )
    row = RowSpec(**ROW | {"kernels": "native"}, quantization="nf4")
    assert refusal(check_runnable, row, error=NotRunnable) == (
        "scheme nf4 is not built on native; built on: bitsandbytes"
    )
    row = RowSpec(**ROW, quantization="int8wo")
    assert refusal(check_runnable, row, error=NotRunnable) == (
        "scheme int8wo is not built on bitsandbytes; built on: native, torchao, gemlite"
    )
    message = refusal(RowSpec, **ROW)
    assert message.endswith("an unquantized row has no bitsandbytes kernels")
    model = quantize_model(new_model(SMALL), "int8dq", kernels="bitsandbytes")
    message = refusal(save_model, model, tmp_path / "saved")
    assert message == (
        "kernels: 'bitsandbytes' is not allowed; allowed: native, torchao"
    )
    device = model.device
    on: dict[str, Any] = {"kernels": "bitsandbytes", "device": device}
    assert refusal(
        check_scheme_savable, "nf4", **on, dtype=torch.float32, error=SaveError
    ) == (
        "scheme nf4 on bitsandbytes kernels: weights of bitsandbytes cannot be saved;"
        " allowed: those of native and torchao kernels"
    )
    with pytest.raises(SpecError, match="this model is quantized already"):
        quantize_model(model, "nf4")


def test_a_library_that_is_not_there_or_breaks_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = RowSpec(**ROW, quantization="nf4")

    def reason() -> str:
        libraries.import_library.cache_clear()
        try:
            return refusal(check_runnable, row, error=NotRunnable)
        finally:
            libraries.import_library.cache_clear()

    def broken(name: str) -> None:
        raise RuntimeError(f"no driver for {name}\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(libraries, "import_module", broken)
        assert reason() == (
            "bitsandbytes cannot be imported: RuntimeError: no driver for bitsandbytes"
        )
        patch.setattr(libraries, "package_version", lambda _name: None)
        assert reason() == (
            "bitsandbytes is not installed (pip install --no-deps bitsandbytes)"
        )
    check_runnable(row)

"""Rows on gemlite: what they ask of its interface, sizes, and where they cannot run."""

import atexit
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llama_perf.errors import NotRunnable, SpecError
from llama_perf.measure.predict import model_bytes
from llama_perf.measure.value_check import signal_to_noise_db
from llama_perf.quantize import gemlite_schemes, libraries
from llama_perf.quantize.registry import config_for, import_all
from llama_perf.rows.schemes import Scheme
from tests.correctness.support import made_up_gemlite
from tests.correctness.support.engines import SMALL
from tests.correctness.support.errors import refusal

# Those of each row and of a group, one group a row, and the fewest and most bits.
BY_ROWS = ("int8wo", "float8wo", "int8dq", "float8dq-row")
BY_GROUPS = ("int4wo-32-hqq", "int4wo-64", "int4wo-128", "uintx-1-32", "uintx-2-16")
SCHEMES = (*BY_ROWS, *BY_GROUPS, "uintx-8-64")
LEAST_DB = {"uintx-1-32": 1.0, "uintx-2-16": 9.0, "int4wo": 19.0}
CUDA = torch.device("cuda")
Tuned = dict[str, Any]


@pytest.fixture
def gemlite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tuned:
    """What a made-up gemlite is tuned to."""
    tuned: Tuned = {}
    import_all()
    monkeypatch.setenv("LLAMA_PERF_CACHE", str(tmp_path))
    monkeypatch.setattr(gemlite_schemes, "package_version", lambda _name: "0.6.0")
    monkeypatch.setattr(
        gemlite_schemes, "import_library", lambda _name: made_up_gemlite.module(tuned)
    )
    monkeypatch.setattr(gemlite_schemes, "device_of", lambda _kind: CARD)
    monkeypatch.setattr(gemlite_schemes, "check_float8", lambda *_: None)
    gemlite_schemes.load.cache_clear()
    return tuned


class CARD:
    key = "cuda-made-up"


def quantized(weight: Tensor, name: str) -> Any:
    """As rows do it, on the CPU with the config for a card."""
    scheme = Scheme.parse(name)
    config: Any = config_for(scheme, kernels="gemlite", device=CUDA, dtype=weight.dtype)
    return config.from_float(weight)


@pytest.mark.usefixtures("gemlite")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SCHEMES)
def test_codes_are_read_as_the_operator_reads_them(
    name: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = (torch.randn(48, 128, generator=generator) * 0.02).to(dtype)
    x = torch.randn(2, 3, 128, generator=generator).to(dtype)
    packed = quantized(weight, name)
    wide = packed.dequantize()
    assert (wide.dtype, wide.shape) == (dtype, weight.shape)
    least_db = LEAST_DB.get(name, LEAST_DB.get(Scheme.parse(name).family, 30.0))
    assert signal_to_noise_db(weight.float(), wide.float()) > least_db
    product = nn.functional.linear(x, packed)
    assert (product.dtype, product.shape) == (dtype, (2, 3, 48))
    wanted = x.float() @ wide.float().T
    assert signal_to_noise_db(wanted, product.float()) > 40
    # Moved and copied it stays the same, as a model that is built moves it.
    assert torch.equal(nn.functional.linear(x, packed.clone()), product)


@pytest.mark.usefixtures("gemlite")
@pytest.mark.parametrize("name", ["int8wo", "int8dq", "int4wo-64", "uintx-2-16"])
def test_the_size_is_predicted_without_the_library(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of each linear: the number that its operator takes with the tensors.
    config = replace(SMALL, n_layers=1, dim=128, head_dim=32, vocab_size=64)
    config = replace(config, intermediate_size=64)
    shapes = [*config.linears.values(), (config.vocab_size, config.dim)]
    norms = 3 * config.dim * 2
    made = norms - 4 * len(shapes)
    for shape in shapes:
        packed = quantized(torch.randn(shape, dtype=torch.bfloat16), name)
        made += sum(getattr(packed, part).nbytes for part in packed.tensor_data_names)

    def missing(_name: str) -> None:
        raise AssertionError("a prediction asks for the library")

    monkeypatch.setattr(gemlite_schemes, "import_library", missing)
    gemlite_schemes.load.cache_clear()
    on: Any = {"kernels": "gemlite", "dtype": torch.bfloat16, "device": "cuda"}
    assert model_bytes(config, name, **on) == made


def test_what_a_process_tuned_is_what_later_ones_use(
    gemlite: Tuned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    at_exit: list[Callable[[], object]] = []
    monkeypatch.setattr(
        atexit, "register", lambda work, *args: at_exit.append(lambda: work(*args))
    )
    gemlite_schemes.load()
    assert gemlite == {}
    gemlite["GEMV"] = {"a shape": "a launch"}
    at_exit.pop()()
    (kept,) = (tmp_path / "gemlite").iterdir()
    assert kept.name == f"cuda-made-up-0.6.0-{torch.__version__}.json"
    gemlite.clear()
    # A new process.
    gemlite_schemes.load.cache_clear()
    gemlite_schemes.load()
    assert gemlite == {"GEMV": {"a shape": "a launch"}}


@pytest.mark.parametrize(
    ("name", "device", "dtype", "reason"),
    [
        ("int8wo", "cpu", "bfloat16", "gemlite's int8wo needs device 'cuda'"),
        (
            "int4wo-64",
            "cuda",
            "float32",
            "gemlite's int4wo-64 takes bfloat16 or float16, not float32",
        ),
        (
            "uintx-5-64",
            "cuda",
            "bfloat16",
            "gemlite's uintx-5-64 is not built; allowed there: 1, 2, 4, 8 bits",
        ),
        (
            "uintx-4-8",
            "cuda",
            "bfloat16",
            "gemlite's uintx-4-8 is not built; allowed there: groups of 16 or more",
        ),
        (
            "fp6",
            "cuda",
            "bfloat16",
            "scheme fp6 is not built on gemlite; built on: native",
        ),
        (
            "int4wo-64",
            "cuda",
            "bfloat16",
            "gemlite is not installed (pip install --no-deps gemlite)",
        ),
    ],
)
def test_what_it_cannot_do_is_said_in_one_line(
    name: str, device: str, dtype: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "package_version", lambda _name: None)
    libraries.import_library.cache_clear()
    gemlite_schemes.load.cache_clear()
    on: Any = {"device": torch.device(device), "dtype": getattr(torch, dtype)}
    scheme = Scheme.parse(name)
    message = refusal(config_for, scheme, kernels="gemlite", **on, error=NotRunnable)
    assert message == reason
    libraries.import_library.cache_clear()


@pytest.mark.usefixtures("gemlite")
def test_a_shape_that_it_refuses_is_named() -> None:
    weight = torch.randn(48, 40, dtype=torch.bfloat16)
    assert refusal(quantized, weight, "int8wo", error=SpecError) == (
        "quantization: 'int8wo' is not allowed; gemlite: Invalid input shapes: 40 , 48."
    )

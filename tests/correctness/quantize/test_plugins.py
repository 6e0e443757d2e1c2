"""What an entry point gives: checked, imported once asked for, refused by one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchao.quantization import Int8WeightOnlyConfig

from llama_perf import OwnScheme
from llama_perf.cli.doctor import NAME_WIDTH
from llama_perf.errors import NotRunnable, UserError
from llama_perf.llama.compiler import code_key
from llama_perf.llama.presets import preset
from llama_perf.measure.predict import model_bytes
from llama_perf.quantize import plugins
from llama_perf.quantize.apply import make_quantizer
from llama_perf.rows.schemes import package_of
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.errors import refusal
from tests.correctness.support.packages import Install, installer

CPU = torch.device("cpu")
CONFIG = Int8WeightOnlyConfig(set_inductor_config=False)
MODULE = """
from llama_perf import OwnScheme
from torchao.quantization import Int8WeightOnlyConfig

def config(device, dtype):
    return Int8WeightOnlyConfig(set_inductor_config=False)

HALF = OwnScheme(config=config, bytes_per_weight=0.5, devices=("cpu",))
WHOLE = OwnScheme(config=config, rounds_activations=True, fused_product=print)
OTHER = 7
"""
BROKEN = "\nimport not_a_module\n"
ENDING = "raise SystemExit(0)"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    plugins.load.cache_clear()
    return installer(tmp_path, monkeypatch)


@pytest.fixture
def home(install: Install) -> Path:
    names = {name: f"bits.{name}:X" for name in ("broken", "unparsed", "ending")}
    names |= {name: f"bits.scheme:{name.upper()}" for name in ("half", "whole")}
    names |= {"other": "bits.scheme:OTHER", "lost": "bits.scheme:LOST"}
    names |= {"fp6": "bits.scheme:HALF"}
    texts = {"scheme.py": MODULE, "broken.py": BROKEN, "unparsed.py": "\n\nx = ="}
    texts |= {"ending.py": ENDING}
    return install("bits", schemes=names, files=texts)


def quantizer(name: str, device: torch.device = CPU, kernels: str = "own") -> Any:
    return make_quantizer(name, kernels=kernels, device=device, dtype=torch.float32)


@pytest.mark.usefixtures("home")
def test_a_scheme_of_a_package_quantizes_and_is_predicted() -> None:
    linear = torch.nn.Linear(32, 16, bias=False)
    quantizer("half")(torch.nn.ModuleDict({"one": linear}), "model")
    assert type(linear.weight).__name__ == "Int8Tensor"
    config = preset("stories15M")
    own: Any = {"kernels": "own", "dtype": torch.float32}
    whole, half = (model_bytes(config, name, **own) for name in ("whole", "half"))
    floats = model_bytes(config, None, dtype=torch.float32)
    # One that says no size is tried.
    assert floats / 4 < whole < floats / 3
    norms = (2 * config.n_layers + 1) * config.dim * 4
    assert half - norms == (floats - norms) / 8
    assert plugins.rounds_activations("whole")
    assert not plugins.rounds_activations("half")


@pytest.mark.usefixtures("home")
def test_what_cannot_be_imported_says_where(cli: CommandLine) -> None:
    start = "scheme broken of bits 1.0 (bits.broken:X) cannot be imported: "
    reason = "ModuleNotFoundError: No module named 'not_a_module'"
    broken = f"{start}{reason}, at bits/broken.py:2 in <module>"
    assert refusal(quantizer, "broken", error=UserError) == broken
    message = refusal(quantizer, "unparsed", error=UserError)
    assert "SyntaxError: " in message
    assert "(unparsed.py, line 3)" in message
    message = refusal(quantizer, "lost", error=UserError)
    assert "AttributeError: module 'bits.scheme' has no attribute 'LOST'" in message
    message = refusal(quantizer, "other", error=UserError)
    assert message.endswith("is of type int; give a llama_perf.OwnScheme")
    message = refusal(quantizer, "half", torch.device("cuda"), error=NotRunnable)
    assert message == "scheme half runs on cpu, not on cuda"
    message = refusal(quantizer, "hal", error=NotRunnable)
    assert message.startswith(
        "scheme hal: no installed package has it; did you mean half?"
    )
    assert "two packages, llama-perf itself and bits" in refusal(
        quantizer, "fp6", kernels="native"
    )
    lines, width = cli("doctor")[0].splitlines(), NAME_WIDTH
    found = {line[:width].strip(): line[width:] for line in lines}
    assert found["scheme broken"] == f"error: {broken}"
    ending = "bits 1.0 (bits.ending:X) cannot be imported: SystemExit: 0, at bits/"
    assert found["scheme ending"].startswith(f"error: scheme ending of {ending}")
    assert found["scheme half"] == "bits 1.0 (bits.scheme:HALF): on cpu"
    assert found["scheme whole"].endswith(": on cuda, cpu, fused")
    assert found["scheme fp6"].startswith("error: quantization: 'fp6' is not allowed")


def test_compiled_code_is_of_the_package_as_it_is(home: Path) -> None:
    packages = [package_of(name) for name in ("half", "bits.scheme:Config()")]
    assert packages == ["bits", "bits"]
    before, others = code_key("bits"), code_key(package_of("int8wo"))
    assert code_key("bits") == before != others
    (home / "scheme.py").write_text(f"{MODULE}\n", encoding="utf-8")
    assert code_key("bits") != before
    assert code_key() == others


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"devices": "cpu"}, "devices: 'cpu' is not allowed; give a tuple of kinds"),
        ({"devices": ("gpu",)}, "devices: 'gpu' is not allowed; allowed: cuda, cpu"),
        ({"bytes_per_weight": 0}, "bytes_per_weight: 0 is not allowed"),
        ({"bytes_per_weight": float("nan")}, "bytes_per_weight: nan is not allowed"),
        ({"fused_product": 1}, "fused_product: 1 is not allowed; allowed: a function"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], message: str) -> None:
    assert refusal(OwnScheme, config=CONFIG, **fields).startswith(message)


def test_a_config_is_torchaos() -> None:
    assert OwnScheme(config=CONFIG).config_for(CPU, torch.float32) is CONFIG
    wrong: Any = lambda _device, _dtype: "int8"  # noqa: E731
    with pytest.raises(TypeError, match="config: str is not allowed"):
        OwnScheme(config=wrong).config_for(CPU, torch.float32)

"""Each scheme on a small model: what it changes, what it stores, what it refuses."""

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from llama_perf import quantize_model, save_model
from llama_perf.errors import NotRunnable, SpecError
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.transformer import Transformer, is_unquantized
from llama_perf.quantize.registry import config_for, import_torchao
from llama_perf.rows.choices import KERNELS
from llama_perf.rows.schemes import ALLOWED, Scheme
from llama_perf.words import shown
from tests.correctness.quantize.test_native_schemes import INT4, MATRIX, NAN
from tests.correctness.support.engines import new_model
from tests.correctness.support.errors import refusal
from tests.correctness.support.schemes import schemes_on
from tests.correctness.support.weights_samples import TINY

ROOT = Path(__file__).resolve().parents[3]
# Every K is a multiple of 64; 192 is none of 128 or 256, like SmolLM2's 576.
SMALL = replace(
    TINY, dim=192, n_heads=6, intermediate_size=256, vocab_size=320, head_dim=32
)
GROUPED = (*INT4, "uintx-4-64", "uintx-3-4", "uintx-2-8-hqq")
BOTH = [
    (scheme, kernels)
    for kernels in KERNELS
    for scheme in schemes_on(kernels, grouped=GROUPED)
]


def small(config: ModelConfig = SMALL) -> Transformer:
    return new_model(config)


def linears(model: Transformer) -> dict[str, nn.Linear]:
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, nn.Linear)}


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize(("scheme", "kernels"), BOTH)
def test_every_linear_is_quantized_once_and_nothing_else(
    scheme: str, kernels: str, tied: bool
) -> None:
    config = replace(SMALL, tied_embeddings=tied)
    before, model = small(config), small(config)
    modules = linears(quantize_model(model, scheme, kernels=kernels))
    assert len(modules) == 5 * SMALL.n_layers + 1
    assert not any(is_unquantized(linear.weight) for linear in modules.values())
    parameters = dict(model.named_parameters())
    others = parameters.keys() - {f"{name}.weight" for name in modules}
    assert len(others) == 2 * SMALL.n_layers + 2, "the embedding and the norms"
    for name in others:
        assert is_unquantized(parameters[name]), name
        assert torch.equal(parameters[name], before.get_parameter(name)), name
    size = model.weight_bytes()
    for again in ("int8wo", scheme):
        with pytest.raises(SpecError, match="this model is quantized already"):
            quantize_model(model, again, kernels=kernels)
    assert model.weight_bytes() == size


WQKV, W2 = "model.layers.0.attention.wqkv", "model.layers.0.feed_forward.w2"
UNKNOWN = ("int5wo", "int4wo", "INT8WO", "", None, 4, ("int8wo",), "uintx-4-0")
INT4_FITS = f"128 must divide K = 192 of {WQKV}; allowed: 32, 64"
UINTX_FITS = f"must divide K = 192 of {WQKV}; allowed: 1, 2, 4, 8, 16, 32, 64"
NO_INT4_FITS = f"32 must divide K = 48 of {WQKV}; none of 32, 64, 128, 256 does"
WIDTH = "intermediate_size"
SIXTEENS = "N = 75 of model.output must be a multiple of 16"


@pytest.mark.parametrize(
    ("scheme", "kernels", "config", "reason"),
    [
        *((scheme, None, {}, ALLOWED) for scheme in UNKNOWN),
        ("int4wo-63", None, {}, "; the group size of int4wo is 32, 64, 128, 256"),
        ("uintx-9-64", None, {}, "; the bits of uintx are 1 to 8"),
        ("int4wo-128", "torchao", {}, INT4_FITS),
        ("int4wo-128-hqq", "torchao", {}, INT4_FITS),
        ("int4wo-128", "native", {}, INT4_FITS),
        ("uintx-3-18", "native", {}, f"18 {UINTX_FITS}"),
        ("uintx-1-384-hqq", "native", {}, f"384 {UINTX_FITS}"),
        ("int4wo-32", "native", {"dim": 48, "head_dim": 8}, NO_INT4_FITS),
        ("uintx-4-16", "native", {WIDTH: 200}, f"K = 200 of {W2}; allowed: 1, 2, 4, 8"),
        ("sparse-marlin", "native", {WIDTH: 250}, f"of {W2} must be a multiple of 4"),
        ("int4wo-64", "torchao", {"vocab_size": 75}, SIXTEENS),
    ],
)
def test_a_scheme_that_does_not_fit_is_refused_before_anything_changes(
    scheme: Any, kernels: str | None, config: dict[str, Any], reason: str
) -> None:
    model = small(replace(SMALL, **config))
    message = refusal(quantize_model, model, scheme, kernels=kernels)
    assert message.startswith(f"quantization: {shown(scheme)} is not allowed; ")
    assert message.endswith(reason)
    assert all(is_unquantized(parameter) for parameter in model.parameters())


@pytest.mark.parametrize(
    ("scheme", "kernels"), [("fp6", "native"), ("int8wo", "torchao")]
)
def test_a_models_weight_is_refused_by_its_name(scheme: str, kernels: str) -> None:
    message = refusal(quantize_model, small().double(), scheme, kernels=kernels)
    assert message.endswith(
        f"model.layers.0.attention.wqkv is float64 (320, 192); {MATRIX}"
    )
    for value, reason in (
        (NAN, "values that are not finite (NaN or infinite)"),
        (3e38, "values of up to 3e+38; allowed: 8.5e+37"),
    ):
        model = small()
        model.get_parameter("layers.1.attention.wo.weight")[3, 5] = value
        message = refusal(quantize_model, model, scheme, kernels=kernels)
        assert message.endswith(f"model.layers.1.attention.wo (192, 192) has {reason}")
        assert all(is_unquantized(parameter) for parameter in model.parameters())


def test_only_a_transformer_on_known_kernels_is_quantized_or_saved() -> None:
    message = refusal(quantize_model, small(), "int8wo", kernels="fast")
    allowed = ", ".join(KERNELS)
    assert message == f"kernels: 'fast' is not allowed; allowed: {allowed}"
    message = "model: 'Linear' is not allowed; allowed: a Transformer, as load_model gi"
    assert refusal(quantize_model, nn.Linear(3, 3), "int8wo").startswith(message)
    assert refusal(save_model, nn.Linear(3, 3), "saved").startswith(message)
    unknown = Transformer(SMALL).requires_grad_(False)
    assert quantize_model(unknown, "fp6").origin is None


@pytest.mark.parametrize(
    ("scheme", "device", "dtype", "reason"),
    [
        *(
            (name, "cpu", "float32", f"scheme {name} is not built on torchao; built on")
            for name in ("fp6", "sparse-marlin", "autoquant", "uintx-4-64")
        ),
        ("int4wo-256", "cpu", "float32", "allowed there: groups of 32, 64, 128"),
        ("float8dq-tensor", "cpu", "bfloat16", "needs a CUDA card with float8"),
        ("float8dq-row", "cpu", "bfloat16", "needs a CUDA card with float8"),
        ("int4wo-64", "cuda", "float32", "only bfloat16 activations on CUDA"),
        ("int4wo-64-hqq", "cuda", "float16", "CUDA, not float16"),
    ],
)
def test_a_scheme_that_torchao_has_not_here_says_so(
    scheme: str, device: str, dtype: str, reason: str
) -> None:
    on = {"device": torch.device(device), "dtype": getattr(torch, dtype)}
    options = {"kernels": "torchao", "error": NotRunnable, **on}
    message = refusal(config_for, Scheme.parse(scheme), **options)
    assert scheme in message
    assert reason in message


def test_a_layer_that_the_kernels_would_skip_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # torchao logs what it skips and goes on: here a quantize_ that does nothing.
    monkeypatch.setattr("torchao.quantization.quantize_", lambda *_: None)
    with pytest.raises(SpecError, match=r"left model\.layers\.0\..* unquantized"):
        quantize_model(small(), "int8wo", kernels="torchao")


NOISY = """\
import logging, warnings
logging.error("no extension")
warnings.warn("a deprecation", DeprecationWarning)
ESCAPE, SAME = "\\.", 1 is 1
"""


@pytest.mark.parametrize("action", ["error", "always"])
def test_torchaos_import_says_nothing(
    action: Literal["error", "always"],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    package = tmp_path / "torchao" / "quantization"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text(NOISY, encoding="utf-8")
    import_torchao()
    for name in list(sys.modules):
        if name.partition(".")[0] == "torchao":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with warnings.catch_warnings(record=action == "always") as caught:
        warnings.simplefilter(action)
        import_torchao()
    assert sys.modules["torchao.quantization"].__file__ == str(package / "__init__.py")
    assert not caught
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_test_may_record_what_it_saw_in_a_file_of_results(tmp_path: Path) -> None:
    test = 'def test_it(record_property):\n    record_property("seen", 1)\n'
    (tmp_path / "test_it.py").write_text(test)
    words = ["-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path]
    words += ["-p", "no:cacheprovider", f"--junit-xml={tmp_path / 'results.xml'}"]
    command = [sys.executable, *map(str, words), str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert 'name="seen"' in (tmp_path / "results.xml").read_text()

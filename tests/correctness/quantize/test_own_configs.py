"""A config by its call: what is built of it, what is refused, and where it breaks."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchao.prototype.awq import AWQConfig
from torchao.prototype.mx_formats import NVFP4WeightOnlyConfig
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Int4WeightOnlyConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
    PerRow,
    PerTensor,
)
from torchao.quantization.quantize_.common import KernelPreference

from llama_perf import quantize_model
from llama_perf.errors import NotRunnable, SchemeError, SpecError
from llama_perf.llama.transformer import is_unquantized
from llama_perf.quantize.own_configs import own_config
from llama_perf.quantize.scheme_faults import scheme_faults
from llama_perf.rows.schemes import Scheme
from tests.correctness.quantize.test_apply import linears, small
from tests.correctness.support.errors import refusal
from tests.correctness.support.own_package import CONFIG, NAME, write_package
from tests.correctness.support.packages import installer

# The stubs of torch lack it.
INT4 = vars(torch)["int4"]


@pytest.fixture(scope="module", autouse=True)
def _package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(write_package(tmp_path_factory.mktemp("installed")))
        yield


def built(text: str) -> Any:
    config = Scheme.parse(text).config
    assert config is not None
    return own_config(config)


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (
            "Int8WeightOnlyConfig(granularity=PerGroup(32))",
            Int8WeightOnlyConfig(granularity=PerGroup(32), set_inductor_config=False),
        ),
        (
            "Int8WeightOnlyConfig(set_inductor_config=True)",
            Int8WeightOnlyConfig(set_inductor_config=True),
        ),
        (
            "IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))",
            IntxWeightOnlyConfig(weight_dtype=INT4, granularity=PerGroup(32)),
        ),
        (
            "Int4WeightOnlyConfig(int4_packing_format='tile_packed_to_4d')",
            Int4WeightOnlyConfig(
                int4_packing_format="tile_packed_to_4d", set_inductor_config=False
            ),
        ),
        (
            "Float8DynamicActivationFloat8WeightConfig("
            "granularity=[PerTensor(), PerTensor()],"
            " kernel_preference=KernelPreference.TORCH)",
            Float8DynamicActivationFloat8WeightConfig(
                granularity=[PerTensor(), PerTensor()],
                kernel_preference=KernelPreference.TORCH,
                set_inductor_config=False,
            ),
        ),
        ("NVFP4WeightOnlyConfig()", NVFP4WeightOnlyConfig()),
        (
            "AWQConfig(base_config=Int8WeightOnlyConfig(granularity=PerRow()),"
            " step='prepare')",
            AWQConfig(
                Int8WeightOnlyConfig(granularity=PerRow(), set_inductor_config=False),
                step="prepare",
            ),
        ),
    ],
)
def test_torchaos_configs_are_found_by_name_and_built(call: str, wanted: Any) -> None:
    config = built(f"torchao:{call}")
    assert type(config) is type(wanted)
    assert vars(config) == vars(wanted)


CODEBOOK = "torchao.prototype.quantization.codebook"
INT8 = "torchao:Int8WeightOnlyConfig"
INTX = "torchao:IntxWeightOnlyConfig(weight_dtype="


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "torchao:Int8WeightOnlyConfg()",
            "did you mean Int8WeightOnlyConfig? torchao has no Int8WeightOnlyConfg",
        ),
        (
            "torchao:CodebookWeightOnlyConfig()",
            "torchao has CodebookWeightOnlyConfig in 2 modules; say which: "
            f"{CODEBOOK}.codebook_quantized_tensor:CodebookWeightOnlyConfig,"
            f" {CODEBOOK}_coreml.api:CodebookWeightOnlyConfig",
        ),
        ("torchao:PerRow()", "PerRow is no config, a class from AOBaseConfig"),
        ("torch.nn:Linear()", "Linear is no config, a class from AOBaseConfig"),
        ("torchao.nothing.here:X()", "there is no module torchao.nothing"),
        (
            "torchao:FqnToConfig()",
            "no function quantizes by FqnToConfig: torchao's"
            " register_quantize_module_handler adds one",
        ),
        (
            f"{INT8}(groupsize=32)",
            "Int8WeightOnlyConfig has no argument groupsize; did you mean group_size?"
            " allowed: group_size, granularity, set_inductor_config, version",
        ),
        (
            f"{INT8}(granularity=PerGroup())",
            "PerGroup: missing a required argument: 'group_size'",
        ),
        (
            f"{INT8}(granularity=PerGroup(1, 2))",
            "PerGroup: too many positional arguments",
        ),
        (
            f"{INT8}(granularity=PerRo())",
            "nothing is called PerRo; did you mean PerRow?",
        ),
        (
            "torchao:AWQConfig()",
            "AWQConfig: missing a required argument: 'base_config'",
        ),
        (f"{INTX}torch.int44)", "torch has no int44; did you mean int4?"),
        (
            f"{INTX}torch.load)",
            "torch.load is neither a dtype nor the member of an enum",
        ),
        (f"{INTX}torch.nn.Linear(3, 3))", "torch.nn.Linear is no class of torchao"),
        (f"{INTX}torch.hub.load('a', 'b'))", "torch.hub.load is no class of torchao"),
        (
            f"{INTX}MappingType.SYMETRIC)",
            "MappingType has no SYMETRIC; did you mean SYMMETRIC? allowed: SYMMETRIC,"
            " SYMMETRIC_NO_CLIPPING_ERR, ASYMMETRIC",
        ),
        (
            f"{NAME}.weights:CodeConfig()",
            f"{NAME}.weights has no CodeConfig; did you mean CodesConfig? allowed:"
            " CodesConfig, UnregisteredConfig",
        ),
        (f"{NAME}:CodesConfig()", f"{NAME} has no CodesConfig; it has no config"),
        (f"{NAME}.weight:CodesConfig()", f"there is no module {NAME}.weight"),
        (
            f"{NAME}.weights:UnregisteredConfig()",
            "no function quantizes by UnregisteredConfig: torchao's"
            " register_quantize_module_handler adds one",
        ),
        (
            f"{CONFIG}(bit=4)",
            "CodesConfig has no argument bit; did you mean bits? allowed: bits, breaks,"
            " rounding",
        ),
        (
            f"{CONFIG}(rounding=Rounding.UP)",
            "Rounding has no UP; allowed: NEAREST, DOWN",
        ),
    ],
)
def test_a_name_that_is_not_there_is_refused(text: str, reason: str) -> None:
    message = refusal(built, text, error=SpecError)
    name = Scheme.parse(text).name
    assert message.startswith("quantization: ")
    assert name in message
    assert message.endswith(f" is not allowed; {reason}")


def test_a_package_that_is_not_installed_ends_not_run() -> None:
    message = refusal(built, "a_package_of_nobody.x:Y()", error=NotRunnable)
    assert message == (
        "a_package_of_nobody.x:Y(): the package a_package_of_nobody is not installed"
    )


def test_a_packages_own_weights_multiply() -> None:
    model = quantize_model(small(), f"{CONFIG}( bits = 4, rounding=Rounding.DOWN )")
    assert model.origin is not None
    assert model.origin.scheme == f"{CONFIG}(bits=4, rounding=Rounding.DOWN)"
    assert model.origin.kernels == "own"
    modules = linears(model)
    assert {type(one.weight).__name__ for one in modules.values()} == {"Codes"}
    plain = small()
    for name, linear in linears(plain).items():
        weight: Any = modules[name].weight
        assert weight.codes.abs().max() <= 8
        linear.weight = nn.Parameter(weight.dequantize())
    tokens = torch.arange(12).view(2, 6)
    torch.testing.assert_close(model.logits(tokens), plain.logits(tokens))


@pytest.mark.parametrize(
    ("text", "error", "line"),
    [
        (f"{CONFIG}(bits=9)", SchemeError, "ValueError: 9 bits do not fit a byte, at"),
        (f"{CONFIG}(breaks='handler')", SchemeError, "ArithmeticError: no scale, at"),
        (f"{CONFIG}(breaks='exit')", SchemeError, "SystemExit: 0, at"),
        (f"{CONFIG}(breaks='name')", SchemeError, "ImportError: cannot import name"),
        (f"{NAME}.broken:X()", SchemeError, "FileNotFoundError: [Errno 2] No such"),
        (
            f"{CONFIG}(breaks='package')",
            NotRunnable,
            "ModuleNotFoundError: No module named 'a_package_that_is_nowhere', at",
        ),
        (f"{INT8}(group_size=32)", SchemeError, "AssertionError: Only support version"),
    ],
)
def test_what_it_raises_is_one_line_with_the_place_in_its_code(
    text: str, error: type[Exception], line: str
) -> None:
    message = refusal(quantize_model, small(), text, error=error)
    assert message.startswith(line)
    where = {
        "bits": f"{NAME}/weights.py:LINE in CodesConfig.__post_init__",
        "breaks": f"{NAME}/weights.py:LINE in quantized",
        "broken": f"{NAME}/broken.py:2 in read",
        "group": "torchao/quantization/quant_api.py:LINE in Int8WeightOnlyConfig",
    }
    wanted = next(place for word, place in where.items() if word in text)
    place = message.rpartition(", at ")[2]
    file, _, rest = place.partition(":")
    number, _, function = rest.partition(" in ")
    assert int(number) > 0
    assert f"{file}:LINE in {function}".startswith(wanted.replace(":2 ", ":LINE "))


def test_a_scheme_that_a_package_adds_by_its_name_is_told_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def product():\n    raise ValueError('odd width')\n"
    installer(tmp_path, monkeypatch)(
        "made-up-plugin",
        schemes={"codes": "made_up_plugin.products:SCHEME"},
        files={"products.py": code},
    )
    product = import_module("made_up_plugin.products").product
    for name, error in (("codes", SchemeError), ("int8wo", ValueError)):
        with pytest.raises(error) as caught, scheme_faults(name):
            product()
        line = "ValueError: odd width, at made_up_plugin/products.py:2 in product"
        assert str(caught.value) == (line if name == "codes" else "odd width")


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        ("nothing", "it left model.layers.0.attention.wqkv, (320, 192), unquantized"),
        ("swap", "it replaces model.layers.0.attention.wqkv by Sequential; allowed:"),
    ],
)
def test_a_weight_that_it_leaves_alone_is_an_error(breaks: str, reason: str) -> None:
    model = small()
    message = refusal(quantize_model, model, f"{CONFIG}(breaks={breaks!r})")
    assert reason in message
    assert all(is_unquantized(parameter) for parameter in model.parameters())

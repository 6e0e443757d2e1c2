"""Linears that `modules` selects are quantized and saved, the others kept."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama_perf import load_model, quantize_model, save_model
from llama_perf.checkpoints.find import open_weights
from llama_perf.errors import WeightsError
from llama_perf.llama.transformer import is_unquantized
from llama_perf.strict_json import parse_json
from tests.correctness.quantize.test_apply import SMALL, linears, small
from tests.correctness.support.errors import refusal
from tests.correctness.support.own_package import CONFIG, NAME, write_package
from tests.correctness.support.weights_samples import write_json


@pytest.fixture(scope="module", autouse=True)
def _package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(write_package(tmp_path_factory.mktemp("installed")))
        yield


@pytest.mark.parametrize(
    ("scheme", "kernels"),
    [
        *(("int8wo", "native"), ("int8wo", "torchao"), (f"{CONFIG}()", "own")),
        ("torchao:NVFP4WeightOnlyConfig()", "torchao"),
    ],
)
def test_only_the_selected_modules_are_quantized(scheme: str, kernels: str) -> None:
    model = small()
    quantize_model(model, scheme, kernels=kernels, modules="*.feed_forward.*, output")
    quantized = {
        name for name, one in linears(model).items() if not is_unquantized(one.weight)
    }
    names = SMALL.linear_names
    assert quantized == {name for name in names if "attention" not in name}
    assert model.origin is not None
    assert model.origin.modules == "*.feed_forward.*,output"
    made = f"{scheme}, {kernels}, only *.feed_forward.*,output, from synthetic"
    assert model.origin.summary == made


def test_modules_that_are_not_there_are_refused_before_anything_changes() -> None:
    model = small()
    message = refusal(quantize_model, model, "int8wo", modules="*.mlp.*")
    assert "'*.mlp.*' matches no linear of the model; there are layers.N." in message
    message = refusal(quantize_model, model, "autoquant", modules="output")
    assert message.endswith("autoquant chooses for every linear")
    assert all(is_unquantized(parameter) for parameter in model.parameters())
    # A width that does not fit the scheme may be left out.
    odd = small(replace(SMALL, vocab_size=75))
    quantize_model(odd, "int4wo-64", kernels="torchao", modules="!output")


@pytest.mark.parametrize(
    ("scheme", "kernels", "modules"),
    [
        ("int4wo-32", "native", "*.feed_forward.*"),
        ("int8wo", "torchao", "!output"),
        ("torchao:NVFP4WeightOnlyConfig()", "torchao", None),
        ("torchao:NVFP4WeightOnlyConfig()", "torchao", "*.w1"),
    ],
)
def test_a_saved_model_is_the_same_and_says_what_was_quantized(
    scheme: str, kernels: str, modules: str | None, tmp_path: Path
) -> None:
    model = small(replace(SMALL, tied_embeddings=True))
    quantize_model(model, scheme, kernels=kernels, modules=modules)
    folder = save_model(model, tmp_path / "saved")
    again = load_model(folder)
    tokens = torch.arange(6).view(1, 6)
    assert torch.equal(again.logits(tokens), model.logits(tokens))
    assert again.origin == model.origin
    assert again.weight_bytes() == model.weight_bytes()
    path = folder / "config.json"
    fields = parse_json(path.read_text(), source="config.json")
    # An older version refuses a field that it does not know.
    assert fields["llama_perf"].get("modules") == modules
    assert ("modules" in fields["llama_perf"]) is (modules is not None)


def test_a_packages_weights_are_neither_saved_nor_asked_for_by_a_file(
    tmp_path: Path,
) -> None:
    model = quantize_model(small(), f"{CONFIG}()")
    words = "a file may not ask for a package's code to be imported"
    assert refusal(save_model, model, tmp_path / "saved").endswith(words)
    folder = save_model(quantize_model(small(), "int8wo"), tmp_path / "other")
    fields = parse_json((folder / "config.json").read_text(), source="config.json")
    fields["llama_perf"] |= {"scheme": f"{NAME}.broken:X()", "kernels": "own"}
    write_json(folder / "config.json", fields)
    message = refusal(open_weights, folder, error=WeightsError)
    assert message.endswith(words)

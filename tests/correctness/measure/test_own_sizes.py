"""Sizes of rows of a config, and of rows that quantize some modules."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_perf import quantize_model
from llama_perf.cli import generate_run
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.transformer import tensor_bytes
from llama_perf.measure.predict import predict
from llama_perf.measure.tune import products
from llama_perf.report import draw
from llama_perf.report.html.chart_values import LOOKS_OF_FAMILIES, family
from llama_perf.report.html.measured_rows import point
from llama_perf.report.html.specs import drawing, family_points
from llama_perf.rows.spec import RowSpec
from tests.correctness.support import engines
from tests.correctness.support.command_line import TINY, CommandLine
from tests.correctness.support.own_package import CONFIG, NAME, write_package
from tests.correctness.support.record_samples import MEASUREMENT, measured, report_of

ROW = RowSpec(
    model="stories15M", quantization=f"{CONFIG}()", dtype="float32", device="cpu"
)
NVFP4 = "torchao:NVFP4WeightOnlyConfig()"
# Their widths are multiples of nothing that a format packs.
ODD = replace(engines.SMALL, vocab_size=328, intermediate_size=208)
TIED = replace(engines.SMALL, tied_embeddings=True)


@pytest.fixture(scope="module", autouse=True)
def _package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(write_package(tmp_path_factory.mktemp("installed")))
        yield


@pytest.mark.parametrize(
    ("scheme", "kernels", "modules", "config"),
    [
        (f"{CONFIG}()", "own", None, ODD),
        (f"{CONFIG}(bits=4)", "own", "!output", TIED),
        (NVFP4, "torchao", None, engines.SMALL),
        (NVFP4, "torchao", "*.w2,output", TIED),
        ("int8wo", "native", "*.feed_forward.*", TIED),
        ("int8wo", "torchao", "layers.1.*", ODD),
        ("int4wo-64", "native", "output", TIED),
    ],
)
def test_the_size_is_that_of_the_quantized_weights(
    scheme: str, kernels: str, modules: str | None, config: ModelConfig
) -> None:
    row = replace(ROW, quantization=scheme, kernels=kernels, modules=modules)
    model = engines.new_model(config)
    quantize_model(model, scheme, kernels=kernels, modules=modules)
    predicted = predict(row, config)
    assert predicted.model_size_bytes == model.weight_bytes()
    assert not predicted.is_bound
    shares = model.output.weight is model.tok_embeddings.weight
    embedding = 0 if shares else tensor_bytes(model.tok_embeddings.weight)
    assert predicted.embedding_bytes == embedding


@pytest.mark.parametrize("breaks", ["handler", "exit"])
def test_a_scheme_that_cannot_be_tried_has_a_bound_and_the_listing_says_so(
    cli: CommandLine, tmp_path: Path, breaks: str
) -> None:
    broken = replace(ROW, quantization=f"{CONFIG}(breaks={breaks!r})")
    bound, plain = (predict(row, ODD) for row in (broken, ROW.unquantized))
    assert bound.is_bound
    assert bound.model_size_bytes == plain.model_size_bytes
    assert not plain.is_bound
    path = tmp_path / "rows.toml"
    calls = (f"{CONFIG}()", broken.quantization, "nobodys.x:Y()")
    path.write_text(
        '[defaults]\nmodel = "stories15M"\ndtype = "float32"\ndevice = "cpu"\n'
        + "".join(f'[[row]]\nquantization = "{call}"\n' for call in calls),
        encoding="utf-8",
    )
    out, _ = cli("rows", "--rows", str(path), "--predict")
    *lines, first, second = out.splitlines()
    assert first.startswith(f"stories15m.codes-breaks-{breaks}-")
    assert second.startswith("stories15m.y-")
    words = ": upper bounds: its scheme cannot be tried here, and its weights count as"
    assert all(words in line for line in (first, second))
    assert lines[-1] == "3 rows"
    assert [line.split()[-3] for line in lines[2:5]] == ["yes", "yes", "no"]


def test_numbers_drawn_later_do_not_depend_on_trying() -> None:
    drawn: list[Tensor] = []
    for row in (replace(ROW, quantization=f"{CONFIG}(bits=3)"), ROW.unquantized):
        torch.manual_seed(0)
        predict(row, ODD)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_what_is_tuned_is_what_modules_leave() -> None:
    row = RowSpec(model="stories15M", quantization="int8wo", fused=True)

    def tuned(modules: str | None) -> dict[str, set[tuple[int, int]]]:
        found: dict[str, set[tuple[int, int]]] = {}
        for scheme, product in products([replace(row, modules=modules)]):
            found.setdefault(scheme, set()).add((product.rows, product.columns))
        return found

    every = tuned(None)["int8wo"]
    assert tuned(None).keys() == {"int8wo"}
    assert tuned("!output") == {
        "int8wo": every - {(32000, 288)},
        "none": {(32000, 288)},
    }
    assert tuned("layers.0.*") == {"int8wo": every - {(32000, 288)}, "none": every}


def test_reports_and_charts_show_it_by_its_name() -> None:
    named = replace(ROW, name="codes-8")
    rows = [
        named,
        replace(named, compile=True),
        replace(ROW, name=None),
        ROW.unquantized,
    ]
    families = [family(row) for row in rows]
    assert families[:2] == ["codes-8"] * 2
    assert families[2].startswith("codes-")
    assert not LOOKS_OF_FAMILIES.keys() & {*families[:3]}
    points = [point(measured(row), MEASUREMENT) for row in rows]
    assert [one["scheme"] for one in points] == families
    chart: Any = family_points(drawing("rows"), points).to_dict()
    scale = chart["encoding"]["shape"]["scale"]
    assert {*scale["domain"]} == {*families}
    text = draw(report_of(*map(measured, rows)), "text")
    assert f"scheme codes-8: {CONFIG}()" in text.splitlines()
    assert "row codes-8" not in text
    page = draw(report_of(*map(measured, rows)), "html")
    assert "codes-8" in page


def test_generate_says_in_one_line_what_breaks(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> int:
        from made_up_scheme.weights import CodesConfig  # type: ignore[import-not-found]

        CodesConfig(bits=9)
        return 0

    monkeypatch.setattr(generate_run, "run", run)
    message = cli.refusal(*TINY, "-q", f"{CONFIG}()", "--modules", "!output")
    start = f"ValueError: 9 bits do not fit a byte, at {NAME}/weights.py:"
    assert message.startswith(start)
    message = cli.refusal(*TINY, "-q", "int8wo", "--modules", "a b")
    assert message.startswith("modules: 'a b' is not allowed; write globs of linears")

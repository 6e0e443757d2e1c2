"""autoquant: what a generation multiplies, the times, the choice, and what it does."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf import generate, load_model, quantize_model, save_model
from llama_perf.checkpoints.save import check_scheme_savable
from llama_perf.errors import SpecError
from llama_perf.llama.options import EngineOptions
from llama_perf.llama.transformer import Transformer
from llama_perf.measure.prepare import prepare_row
from llama_perf.quantize.apply import make_quantizer
from llama_perf.quantize.autoquant import choose as choosing
from llama_perf.quantize.autoquant.choose import choose, products
from llama_perf.quantize.autoquant.timing import Product
from llama_perf.results.measurement import LinearChoice
from llama_perf.rows.spec import RowSpec
from tests.correctness.quantize.test_apply import linears
from tests.correctness.support.engines import new_model
from tests.correctness.support.weights_samples import TINY

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
ROW = RowSpec(
    model="stories15M",
    quantization="autoquant",
    dtype="float32",
    device="cpu",
    prompt_length=3,
    max_new_tokens=5,
    num_samples=1,
)
STORIES = load_model("stories15M").config
# K of 288 and 768 in stories15M: only the latter is a multiple of 64.
SHAPES = {(864, 288), (288, 288), (768, 288), (288, 768), (32000, 288)}
LAYER = SHAPES - {(32000, 288)}
Timed = Callable[[Callable[[str, Product], float]], list[tuple[str, Product]]]


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 2},
        {"max_new_tokens": 1},
        {"prompt_length": 7, "batch_size": 2, "attention": "sdpa"},
        {"prompt_length": 7, "batch_size": 2, "prefill_chunk": 4},
        {"prompt_length": 7, "prefill_chunk": 4, "attention": "sdpa"},
        {"prompt_length": 8, "prefill_chunk": 4},
        {"prompt_length": 9, "prefill_chunk": 4},
        {"prompt_length": 600},
        {"prompt_length": 600, "attention": "sdpa"},
    ],
    ids=str,
)
def test_the_counted_products_are_those_of_a_real_generation(
    changes: dict[str, Any],
) -> None:
    row = replace(ROW, **changes)
    model = new_model()
    multiplied: Counter[Product] = Counter()

    def log(linear: Any, arguments: tuple[Any, ...]) -> None:
        rows, columns = linear.out_features, linear.in_features
        tokens = arguments[0].numel() // columns
        multiplied[Product(tokens=tokens, rows=rows, columns=columns)] += 1

    for linear in linears(model).values():
        linear.register_forward_pre_hook(log)
    prompt = torch.ones((row.batch_size, row.prompt_length), dtype=torch.int64)
    options = EngineOptions.of(row)
    generate(model, prompt, max_new_tokens=row.max_new_tokens, options=options)
    assert products(row, model.config) == multiplied


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Timed:
    """Times by a rule, kept in a folder that is not there yet: what was asked for."""
    asked: list[tuple[str, Product]] = []
    monkeypatch.setenv("LLAMA_PERF_CACHE", str(tmp_path / "cache"))

    def by(rule: Callable[[str, Product], float]) -> list[tuple[str, Product]]:
        def time(product: Product, names: list[str], _device: Any) -> dict[str, float]:
            asked.extend((name, product) for name in names)
            return {name: rule(name, product) for name in names}

        monkeypatch.setattr(choosing, "time_product", time)
        return asked

    return by


def by_tokens(name: str, product: Product) -> float:
    """int8wo takes 1 us for each token; nothing takes 2.5 us for any number."""
    return {"none": 2.5, "int8wo": 1.0 * product.tokens}.get(name, 9.0)


def test_the_choice_is_the_least_time_of_a_whole_generation(timed: Timed) -> None:
    timed(by_tokens)

    def chosen(row: RowSpec) -> dict[tuple[int, int], LinearChoice]:
        choices = choose(row, STORIES)
        return {(choice.out_features, choice.in_features): choice for choice in choices}

    # Six layers: a prompt of 100 tokens and 4 steps, then of 3 tokens and 4 steps.
    long, short = chosen(replace(ROW, prompt_length=100)), chosen(ROW)
    assert long.keys() == short.keys() == SHAPES
    assert long[288, 288].products == ((100, 6), (1, 24))
    totals = {"none": (6 + 24) * 2.5e-3, "int8wo": (600 + 24) * 1e-3}
    for name, total in totals.items():
        assert long[288, 288].total_ms[name] == pytest.approx(total)
    assert long[288, 288].chosen == "none"
    assert short[288, 288].chosen == "int8wo"
    # Only one token of a prompt reaches the output.
    assert long[32000, 288].chosen == "int8wo"


def test_a_scheme_that_does_not_fit_a_shape_is_no_candidate(timed: Timed) -> None:
    asked = timed(lambda name, _: 1.0 if "int4" in name else 2.0)
    row = replace(ROW, quantization="autoquant-int4")
    for choice in choose(row, STORIES):
        fits = choice.in_features % 64 == 0
        assert choice.chosen == ("int4wo-64-hqq" if fits else "none")
        assert ("int4wo-64-hqq" in choice.total_ms) == fits
    assert {product.columns for name, product in asked if "int4" in name} == {768}


def test_times_are_kept_and_used_again_on_the_same_machine(
    timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = timed(by_tokens)
    lines: list[str] = []
    steps: list[str] = []

    def choices(**changes: Any) -> tuple[LinearChoice, ...]:
        asked.clear()
        lines.clear()
        return choose(
            replace(ROW, **changes), TINY, notify=lines.append, progress=steps.append
        )

    first = choices()
    assert asked
    assert not any(choice.reused for choice in first)
    assert lines == []
    assert any("timing none, int8wo, int8dq at M = 3, N = " in line for line in steps)
    again = choices()
    assert asked == []
    assert all(choice.reused for choice in again)
    assert [replace(choice, reused=False) for choice in again] == list(first)
    assert lines == ["autoquant: every time was taken before and is used again"]
    choices(quantization="autoquant-int4")
    assert {name for name, _ in asked} == {"int4wo-64-hqq"}
    choices(compile=True)
    # A step of decoding is compiled then, the prompt is not.
    assert {(product.tokens, product.how) for _, product in asked} == {(1, "compiled")}
    choices(dtype="bfloat16")
    assert {product.tokens for _, product in asked} == {1, 3}
    monkeypatch.setattr(choosing, "machine_key", lambda _environment: "another")
    assert choices()
    assert {product.tokens for _, product in asked} == {1, 3}


def test_a_file_that_cannot_be_used_is_told_and_kept_and_the_choice_stands(
    timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, times_file, lines = timed(by_tokens), choosing.times_path(), list[str]()
    times_file.parent.mkdir()
    times_file.write_text('{"kind": "something else"}', encoding="utf-8")
    assert choose(ROW, TINY, notify=lines.append)
    assert asked
    assert lines[0].startswith(f"autoquant: {times_file}: kind: ")
    assert lines[0].endswith("; timing anew without it")
    assert times_file.read_text(encoding="utf-8") == '{"kind": "something else"}'
    monkeypatch.setenv("LLAMA_PERF_CACHE", str(times_file))
    assert choose(ROW, TINY, notify=lines.append)
    start = f"autoquant: the times are not kept: {times_file}/autoquant.json: cannot be"
    assert lines[-1].startswith(start)


def test_a_row_a_model_and_a_saved_one_run_on_what_was_chosen(
    timed: Timed, tmp_path: Path
) -> None:
    best = {864: "int8wo", 768: "int8dq"}

    asked = timed(lambda name, it: 1.0 if name == best.get(it.rows, "none") else 2.0)
    check_scheme_savable("autoquant-int4", kernels="native", **CPU)
    model = quantize_model(load_model("stories15M"), "autoquant", compile=True)
    # The reference's generation: a prompt of six tokens.
    assert {product.tokens for _, product in asked} == {1, 6}
    prepared = prepare_row(ROW)
    schemes = {choice.chosen for choice in prepared.autoquant or ()}
    assert schemes == {"none", "int8wo", "int8dq"}
    expected = load_model("stories15M")
    for linear in linears(expected).values():
        if scheme := best.get(linear.out_features):
            make_quantizer(scheme, kernels="native", **CPU)(linear, "linear")
    logits = expected.logits(prepared.prompt)
    saved = load_model(save_model(model, tmp_path / "saved"))
    for quantized in (model, prepared.engine.architecture, saved):
        kinds = {
            (linear.out_features, linear.in_features): type(linear.weight.data).__name__
            for linear in linears(quantized).values()
        }
        chosen = {(864, 288): "Int8Weight", (768, 288): "Int8DynamicWeight"}
        assert kinds == dict.fromkeys(SHAPES, "Tensor") | chosen
        assert torch.equal(quantized.logits(prepared.prompt), logits)
    with pytest.raises(SpecError, match="this model is quantized already"):
        quantize_model(model, "int8wo")


@pytest.mark.parametrize(
    ("schemes", "known"), [({}, "no shape at all"), ({(1, 2): "none"}, r"\(1, 2\)")]
)
def test_a_shape_without_a_choice_is_refused(schemes: Any, known: str) -> None:
    quantize = make_quantizer("autoquant", kernels="native", schemes=schemes, **CPU)
    message = rf"shape: \(\d+, \d+\) is not allowed; autoquant chose for {known}"
    with pytest.raises(SpecError, match=message):
        quantize(Transformer(TINY), "model")


def test_a_fused_row_times_its_own_kernels_and_long_prompts_the_operators() -> None:
    def hows(tokens: int, config: Any = STORIES, **changes: Any) -> dict[Any, str]:
        """How the products of so many tokens are timed, by shape."""
        row = replace(ROW, **{"device": "cuda", "dtype": "bfloat16", **changes})
        return {
            (product.rows, product.columns): product.how
            for product in products(row, config)
            if product.tokens == tokens
        }

    fused = dict.fromkeys(SHAPES, "fused") | {(768, 288): "fused gate"}
    for length in (6, 8, 9, 100):
        options = {"compile": True, "fused": True, "prompt_length": length}
        assert hows(1, **options) == fused
        prompt = fused if length <= 8 else dict.fromkeys(SHAPES, "eager")
        assert hows(length, **options) == {shape: prompt[shape] for shape in LAYER}
    assert hows(1) == dict.fromkeys(SHAPES, "eager")
    assert hows(1, compile=True) == dict.fromkeys(SHAPES, "compiled")
    assert hows(3, compile=True) == dict.fromkeys(LAYER, "eager")
    # A CPU's fused layer has the operators' products.
    on_cpu = {"device": "cpu", "compile": True, "fused": True}
    assert hows(1, **on_cpu) == dict.fromkeys(SHAPES, "eager")
    # A shape that another linear has too is timed by itself.
    square = replace(STORIES, intermediate_size=STORIES.dim)
    assert "fused gate" not in hows(1, square, compile=True, fused=True).values()

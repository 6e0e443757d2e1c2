"""autoquant: what a generation multiplies, the times, the choice, and what it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchao.quantization import quantize_

from llama_perf import generate, load_model, quantize_model, save_model
from llama_perf.checkpoints.save import check_scheme_savable
from llama_perf.errors import RecordError, SpecError
from llama_perf.llama.transformer import Transformer, is_unquantized
from llama_perf.measure.prepare import prepare
from llama_perf.quantize.autoquant import choose as choosing
from llama_perf.quantize.autoquant import times_file
from llama_perf.quantize.autoquant.choose import choose
from llama_perf.quantize.autoquant.products import Product, logged_products
from llama_perf.quantize.autoquant.scheme import AutoquantConfig
from llama_perf.quantize.autoquant.times_file import time_key
from llama_perf.quantize.model import chosen_quantizer
from llama_perf.results.measurement import LinearChoice
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.record_samples import ENVIRONMENT
from tests.correctness.support.weights_samples import TINY

CPU = torch.device("cpu")
ROW = RowSpec(
    model="stories15M",
    quantization="autoquant",
    dtype="float32",
    device="cpu",
    prompt_length=3,
    max_new_tokens=5,
    num_samples=1,
)
# K of 288 and 768 in stories15M: only the latter is a multiple of 64.
SHAPES = {(864, 288), (288, 288), (768, 288), (288, 768), (32000, 288)}


def test_the_logged_products_are_those_of_a_real_generation() -> None:
    model = load_model("stories15M")
    multiplied: Counter[Product] = Counter()

    def log(linear: Any, arguments: tuple[Any, ...]) -> None:
        tokens = arguments[0].shape[0] * (
            arguments[0].shape[1] if arguments[0].ndim == 3 else 1
        )
        shape = (linear.out_features, linear.in_features)
        multiplied[Product(tokens=tokens, rows=shape[0], columns=shape[1])] += 1

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(log)
    generate(model, torch.ones((2, 3), dtype=torch.int64), max_new_tokens=4)
    logged = logged_products(
        model.config, batch_size=2, prompt_length=3, max_new_tokens=4
    )
    assert logged == multiplied
    assert {each.tokens for each in logged} == {2, 6}
    assert {(each.rows, each.columns) for each in logged} == SHAPES


def test_a_prompt_in_chunks_multiplies_chunks() -> None:
    def tokens(**options: Any) -> set[int]:
        logged = logged_products(
            TINY, batch_size=2, prompt_length=7, max_new_tokens=1, **options
        )
        return {each.tokens for each in logged}

    # The head takes the last token of each sequence alone.
    assert tokens() == tokens(attention="sdpa") == {14, 2}
    assert tokens(prefill_chunk=4) == {8, 6, 2}
    assert tokens(prefill_chunk=4, attention="sdpa") == {8, 6, 2}


def test_one_new_token_has_no_step_of_decoding() -> None:
    logged = logged_products(TINY, batch_size=1, prompt_length=4, max_new_tokens=1)
    assert {each.tokens for each in logged} == {1, 4}
    assert logged.total() == TINY.n_layers * 5 + 1


def fake_times(
    monkeypatch: pytest.MonkeyPatch, times: Callable[[str, Product], float]
) -> list[tuple[str, Product]]:
    """Times by a rule; returns what was asked for, in its order."""
    asked: list[tuple[str, Product]] = []

    def time(
        product: Product, candidates: list[str], **_options: object
    ) -> dict[str, float]:
        asked.extend((name, product) for name in candidates)
        return {name: times(name, product) for name in candidates}

    monkeypatch.setattr(choosing, "time_product", time)
    return asked


def by_tokens(name: str, product: Product) -> float:
    """int8wo takes 1 us for each token; nothing takes 2.5 us for any number."""
    return {"none": 2.5, "int8wo": 1.0 * product.tokens}.get(name, 9.0)


def test_the_choice_is_the_least_time_over_a_whole_generation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_times(monkeypatch, by_tokens)
    config = load_model("stories15M").config

    def chosen(row: RowSpec) -> dict[tuple[int, int], LinearChoice]:
        choices = choose(row, config, path=tmp_path / "times.json")
        return {(each.out_features, each.in_features): each for each in choices}

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


def test_a_scheme_that_does_not_fit_a_shape_is_no_candidate_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = fake_times(monkeypatch, lambda name, _: 1.0 if "int4" in name else 2.0)
    row = replace(ROW, quantization="autoquant-int4")
    config = load_model("stories15M").config
    for each in choose(row, config, path=tmp_path / "times.json"):
        fits = each.in_features % 64 == 0
        assert each.chosen == ("int4wo-64-hqq" if fits else "none")
        assert ("int4wo-64-hqq" in each.total_ms) == fits
    with_int4 = {product.columns for name, product in asked if "int4" in name}
    assert with_int4 == {768}


def test_times_are_kept_and_used_again_on_the_same_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = fake_times(monkeypatch, by_tokens)
    path, config = tmp_path / "deep" / "times.json", TINY
    told: list[str] = []

    def choices(row: RowSpec = ROW) -> tuple[LinearChoice, ...]:
        asked.clear()
        told.clear()
        return choose(row, config, notify=told.append, path=path)

    first = choices()
    assert asked
    assert not any(each.reused for each in first)
    assert any("timing none, int8wo, int8dq at M = 3, N = " in line for line in told)
    again = choices()
    assert asked == []
    assert all(each.reused for each in again)
    assert [replace(each, reused=False) for each in again] == list(first)
    assert told == ["autoquant: every time was taken before and is used again"]
    choices(replace(ROW, quantization="autoquant-int4"))
    assert {name for name, _ in asked} == {"int4wo-64-hqq"}
    choices(replace(ROW, compile=True))
    # A step of decoding is compiled then, the prompt is not.
    assert {product.tokens for _, product in asked} == {1}
    choices(replace(ROW, dtype="bfloat16"))
    assert {product.tokens for _, product in asked} == {1, 3}
    monkeypatch.setattr(choosing, "machine_key", lambda _environment: "another")
    assert choices()
    assert {product.tokens for _, product in asked} == {1, 3}


def test_a_damaged_file_is_told_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = fake_times(monkeypatch, by_tokens)
    path = tmp_path / "times.json"
    told: list[str] = []
    path.write_text('{"kind": "something else"}', encoding="utf-8")
    with pytest.raises(RecordError):
        times_file.read(path)
    choose(ROW, TINY, notify=told.append, path=path)
    assert asked
    assert told[0].startswith(f"autoquant: {path}: kind: ")
    assert told[0].endswith("; timing anew without it")
    assert path.read_text(encoding="utf-8") == '{"kind": "something else"}'


def test_a_file_that_cannot_be_written_is_told_and_the_choice_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_times(monkeypatch, by_tokens)
    (tmp_path / "file").touch()
    told: list[str] = []
    path = tmp_path / "file" / "times.json"
    assert choose(ROW, TINY, notify=told.append, path=path)
    assert told[-1].startswith(f"autoquant: the times are not kept: {path}: cannot be")


def test_a_row_runs_on_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def times(name: str, product: Product) -> float:
        best = {864: "int8wo", 768: "int8dq"}.get(product.rows, "none")
        return 1.0 if name == best else 2.0

    fake_times(monkeypatch, times)
    prepared = prepare(ROW)
    model = prepared.engine.model
    kinds = {
        (module.out_features, module.in_features): type(module.weight).__name__
        for module in model.modules()
        if isinstance(module, nn.Linear)
    }
    assert kinds == {
        (864, 288): "Int8Weight",
        (768, 288): "Int8DynamicWeight",
        (288, 288): "Parameter",
        (288, 768): "Parameter",
        (32000, 288): "Parameter",
    }
    assert prepared.autoquant is not None
    assert {each.chosen for each in prepared.autoquant} == {"none", "int8wo", "int8dq"}
    plain = load_model("stories15M")
    layers: Any = plain.layers
    for layer in layers:
        quantize_model_part(layer.attention.wqkv, "int8wo")
        for linear in (layer.feed_forward.w1, layer.feed_forward.w3):
            quantize_model_part(linear, "int8dq")
    ids = prepared.prompt
    assert torch.equal(plain.logits(ids), model.logits(ids))


def quantize_model_part(linear: nn.Module, scheme: str) -> None:
    from llama_perf.quantize.apply import make_quantizer

    quantize = make_quantizer(scheme, kernels="native", device=CPU, dtype=torch.float32)
    quantize(linear, "linear")


def test_a_model_at_hand_is_quantized_by_what_is_fastest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = fake_times(monkeypatch, lambda name, _: 1.0 if name == "int8wo" else 2.0)
    model = quantize_model(load_model("stories15M"), "autoquant", compile=True)
    linears = [each for each in model.modules() if isinstance(each, nn.Linear)]
    assert not any(is_unquantized(each.weight) for each in linears)
    # The reference's generation: a prompt of six tokens.
    assert {product.tokens for _, product in asked} == {1, 6}
    with pytest.raises(SpecError, match="this model is quantized already"):
        quantize_model(model, "int8wo")


def test_a_choice_is_saved_and_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def times(name: str, product: Product) -> float:
        best = {864: "int8wo", 768: "int8dq"}.get(product.rows, "none")
        return 1.0 if name == best else 2.0

    fake_times(monkeypatch, times)
    check_scheme_savable(
        "autoquant-int4", kernels="native", device=CPU, dtype=torch.float32
    )
    model = quantize_model(load_model("stories15M"), "autoquant")
    again = load_model(save_model(model, tmp_path / "saved"))
    ids = torch.arange(5).unsqueeze(0)
    assert torch.equal(again.logits(ids), model.logits(ids))
    kinds = [type(each) for each in model.parameters()]
    assert [type(each) for each in again.parameters()] == kinds


def test_a_shape_without_a_choice_is_refused() -> None:
    model = Transformer(TINY)
    message = r"shape: \(\d+, \d+\) is not allowed; autoquant chose for no shape at all"
    with pytest.raises(SpecError, match=message):
        quantize_(model, AutoquantConfig())
    choice = LinearChoice(
        out_features=1,
        in_features=2,
        products=((1, 1),),
        chosen="none",
        total_ms={"none": 1.0},
        reused=False,
    )
    quantize = chosen_quantizer(ROW, [choice], device=CPU, dtype=torch.float32)
    with pytest.raises(SpecError, match=r"autoquant chose for \(1, 2\)"):
        quantize(Transformer(TINY), "model")


def test_a_fused_row_times_its_own_kernels_and_long_prompts_the_operators() -> None:
    row = RowSpec(model="7B", quantization="autoquant", compile=True, fused=True)
    for tokens, how in ((1, "fused"), (6, "fused"), (8, "fused"), (9, "eager")):
        product = Product(tokens=tokens, rows=64, columns=64)
        assert choosing._how(row, product) == how
    unfused = replace(row, fused=False)
    product = Product(tokens=1, rows=64, columns=64)
    assert choosing._how(unfused, product) == "compiled"
    assert choosing._how(replace(unfused, compile=False), product) == "eager"
    keys = {
        time_key("int8wo", product, dtype="bfloat16", how=how)
        for how in ("eager", "compiled", "fused")
    }
    assert len(keys) == 3


def test_gate_and_up_of_a_fused_row_are_timed_as_the_one_kernel_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[tuple[int, int, int], str] = {}

    def time(
        product: Product, candidates: list[str], *, how: str, **_options: object
    ) -> dict[str, float]:
        asked[product.tokens, product.rows, product.columns] = how
        return dict.fromkeys(candidates, 1.0)

    monkeypatch.setattr(choosing, "time_product", time)
    row = RowSpec(
        model="stories15M",
        quantization="autoquant",
        prompt_length=100,
        compile=True,
        fused=True,
    )
    # The machine is this one, where there is no card.
    monkeypatch.setattr(choosing, "fingerprint", lambda _device: asdict(ENVIRONMENT))
    config = load_model("stories15M").config
    choose(row, config, path=tmp_path / "times.json")
    steps = {shape[1:]: how for shape, how in asked.items() if shape[0] == 1}
    assert steps == dict.fromkeys(SHAPES, "fused") | {(768, 288): "fused gate"}
    prompt = {shape[1:]: how for shape, how in asked.items() if shape[0] == 100}
    assert prompt == dict.fromkeys(SHAPES - {(32000, 288)}, "eager")
    # A shape that another linear has too is timed by itself.
    square = replace(config, intermediate_size=config.dim)
    assert choosing._gate_shape(square) is None

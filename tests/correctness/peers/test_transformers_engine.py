"""Rows that transformers runs: the same model, the same tokens, the same figures."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_perf.checkpoints.find import open_weights
from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.reader import SyntheticWeights
from llama_perf.errors import PromptError, ValuesError
from llama_perf.llama.config import ModelConfig, RopeScaling
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import GREEDY, EngineOptions, Sampling
from llama_perf.measure import value_check
from llama_perf.measure.closeness import closeness_db
from llama_perf.measure.predict import predict
from llama_perf.measure.prepare import PreparedRow, prepare_row
from llama_perf.measure.step_profile import count_work
from llama_perf.measure.timing import memory_parts, time_row
from llama_perf.peers.transformers_engine import TransformersEngine
from llama_perf.peers.transformers_model import (
    build_transformers_model,
    import_transformers,
)
from llama_perf.quantize.apply import make_quantizer
from llama_perf.rows.modules import ModuleFilter
from llama_perf.rows.spec import RowSpec
from tests.correctness.support import architectures
from tests.correctness.support.engines import small_checkpoints, tokens
from tests.correctness.support.errors import refusal

CPU = torch.device("cpu")
BUILD: Any = {"dtype": torch.float32, "device": CPU}
# Its heads are not as wide as the model by their number.
LLAMA = ModelConfig(
    dim=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    intermediate_size=128,
    vocab_size=48,
    head_dim=32,
    norm_eps=1e-3,
    rope_base=500.0,
    context=64,
)
SCALED = replace(LLAMA, rope_scaling=RopeScaling(factor=4.0, original_context=16))
MODELS = {"llama": LLAMA, "llama 3.1": SCALED}
MODELS["tied"] = replace(LLAMA, tied_embeddings=True)
ROW = RowSpec(
    model="small",
    engine="transformers",
    device="cpu",
    dtype="float32",
    max_new_tokens=6,
)


def reader(config: ModelConfig = LLAMA) -> SyntheticWeights:
    return SyntheticWeights(config, dtype=torch.float32, device=CPU)


def engines(
    config: ModelConfig = LLAMA, **options: Any
) -> tuple[TransformersEngine, Engine]:
    """transformers' engine and this project's, of the same weights."""
    chosen = EngineOptions(**{"cache_size": 40, **options})
    theirs = build_transformers_model(reader(config), **BUILD)
    ours = Engine(build_model(reader(config), **BUILD), replace(chosen, compile=False))
    return TransformersEngine(theirs, chosen), ours


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_same_model(name: str) -> None:
    theirs, ours = engines(MODELS[name], batch_size=2)
    text, places = tokens(2, 20), torch.arange(20).expand(2, -1)
    wanted = ours.model.logits(text)
    close(theirs.plain_logits(text, places), wanted)
    close(theirs.prefill(text[:, :7]), wanted[:, 6])
    for at in (7, 8, 9):
        token = text[:, at : at + 1]
        close(theirs.decode(token, torch.tensor([at])), wanted[:, at])
    # It begins anew.
    close(theirs.prefill(text[:, :3]), wanted[:, 2])
    request: Any = {"max_new_tokens": 9, "sampling": GREEDY}
    expected = ours.generate(text, **request)
    assert torch.equal(theirs.generate(text, **request), expected)
    seen, logits = theirs.observe(text, observed=4, **request)
    assert torch.equal(seen, expected[:, 20:24])
    close(logits, ours.observe(text, observed=4, **request)[1])
    assert theirs.model.weight_bytes() == ours.model.weight_bytes()
    assert memory_parts(theirs).weights_bytes - memory_parts(ours).weights_bytes == (
        # Their frequencies are there twice.
        4 * MODELS[name].head_dim // 2
    )


def test_weights_come_back_as_they_were_read() -> None:
    theirs, _ = engines()
    for index in range(LLAMA.n_layers):
        actual = theirs.layer_weights(index, lambda weight: weight)
        wanted = reader().layer(index)
        assert actual.keys() == wanted.keys()
        for name, weight in wanted.items():
            assert torch.equal(actual[name], weight)
    final = theirs.final_weights(lambda weight: weight)
    assert torch.equal(final["output.weight"], reader().final()["output.weight"])
    copied = theirs.copy()
    request: Any = {"max_new_tokens": 5, "sampling": GREEDY}
    before = theirs.generate(tokens(1, 4), **request)
    theirs.output_projection.zero_()
    assert torch.equal(copied.generate(tokens(1, 4), **request), before)


@pytest.mark.parametrize(
    ("scheme", "kernels"),
    [("int8wo", "torchao"), ("nf4", "bitsandbytes"), ("uintx-4-32", "native")],
)
def test_quantized_weights_are_those_of_the_other_engine(
    scheme: str, kernels: str
) -> None:
    selected = ModuleFilter.parse("*.attention.*")
    make = partial(make_quantizer, scheme, kernels=kernels, selected=selected)
    quantizer = make(device=CPU, dtype=torch.float32)
    theirs = build_transformers_model(reader(), **BUILD, quantizer=quantizer)
    ours = build_model(reader(), **BUILD, quantizer=quantizer)
    for index, layer in enumerate(ours.layers):
        actual = theirs.layer_weights(index, value_check._float)
        for name, weight in layer.named_parameters():
            assert torch.equal(actual[name], value_check._float(weight))
    projections: Any = theirs.module.model.layers[0]
    assert type(projections.self_attn.k_proj.weight.data) is not Tensor
    assert type(projections.mlp.up_proj.weight.data) is Tensor


@pytest.fixture
def compiling_quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile that traces, and generates no code."""
    library = import_transformers()
    quick = partial(library.CompileConfig, backend="aot_eager")
    monkeypatch.setattr(library, "CompileConfig", quick)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiling_quickly")
def test_a_token_runs_compiled_by_one_graph() -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    both = theirs, ours = engines(compile=True)
    request: Any = {"max_new_tokens": 6, "sampling": GREEDY}
    prompt = tokens(1, 7)
    wanted = ours.generate(prompt, **request)
    assert torch.equal(theirs.generate(prompt, **request), wanted)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    # Neither another token, nor another generation, nor a single step needs another.
    assert torch.equal(theirs.generate(prompt, **request), wanted)
    close(theirs.prefill(wanted[:, :9]), ours.prefill(wanted[:, :9]))
    text = wanted[:, :12]
    read = [torch.stack([*map(Tensor.clone, one.read(text, 9))]) for one in both]
    assert len(read[0]) == 3
    close(*read)
    assert counters["stats"]["unique_graphs"] == graphs


def test_tokens_are_drawn_as_sampling_says() -> None:
    theirs, _ = engines(batch_size=2000)
    prompt = tokens(1, 5).expand(2000, -1)
    logits = theirs.prefill(prompt)[0]
    generator = torch.Generator().manual_seed(3)
    sampling = Sampling(temperature=0.5, top_k=4, generator=generator)
    draw = partial(theirs.generate, prompt, max_new_tokens=1)
    drawn = draw(sampling=sampling)[:, -1]
    best = logits.topk(4).indices
    wanted = torch.zeros_like(logits)
    wanted[best] = (logits[best] / 0.5).softmax(0)
    shares = drawn.bincount(minlength=len(logits)) / len(drawn)
    # Four standard deviations of a share.
    assert (shares - wanted).abs().max() < 4 * 0.5 / 2000**0.5
    assert not torch.equal(draw(sampling=sampling)[:, -1], drawn)
    generator.manual_seed(3)
    assert torch.equal(draw(sampling=sampling)[:, -1], drawn)
    seeded = replace(sampling, seed=5, generator=None)
    assert torch.equal(draw(sampling=seeded), draw(sampling=seeded))


def built(**fields: Any) -> PreparedRow:
    return prepare_row(replace(ROW, **fields), checkpoints=small_checkpoints())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prefill_chunk": 4, "batch_size": 2},
        {"quantization": "nf4", "kernels": "bitsandbytes", "dtype": "bfloat16"},
    ],
    ids=str,
)
def test_a_row_is_measured_and_its_values_are_checked(fields: dict[str, Any]) -> None:
    prepared = built(**fields)
    observe = partial(value_check.warm_up_row, prepared)
    observed = observe(torch.Generator().manual_seed(0))
    check = value_check.check_row_values(prepared, observed)
    assert check.against == value_check.DEQUANTIZED
    assert check.tokens == 6 * prepared.row.batch_size
    assert check.signal_to_noise_db > check.least_db
    damaged = observe(torch.Generator().manual_seed(0), damaged=True)
    with pytest.raises(ValuesError, match="at least"):
        value_check.check_row_values(prepared, damaged)
    sample = time_row(prepared, torch.Generator().manual_seed(0))
    assert len(sample.token_ns) == 5
    assert 0 < sample.first_token_ns < sample.total_ns
    assert prepared.quantization == prepared.row.quantization


def test_its_memory_is_predicted_and_its_closeness_is_that_of_its_weights() -> None:
    prepared = built(cache_size=512)
    config = prepared.engine.model.config
    predicted = predict(prepared.row, config)
    parts = memory_parts(prepared.engine)
    # The positions of a mask are counted too.
    assert parts.cache_bytes == pytest.approx(predicted.cache_bytes, abs=8 * 512 + 64)
    assert prepared.model_size_bytes == predicted.model_size_bytes
    work, again = count_work(prepared), count_work(prepared)
    assert work.step is not None
    assert again.step is not None
    assert work.step.calls == again.step.calls > 0
    assert work.peak_bytes == pytest.approx(predicted.peak_bytes, rel=0.05)
    weights = open_weights(small_checkpoints() / "small")
    prepared = replace(prepared, unquantized=weights)
    observed = value_check.warm_up_row(prepared, torch.Generator().manual_seed(0))
    exact = closeness_db(prepared, observed)
    assert exact is not None
    assert exact > 80
    rough = replace(built(quantization="uintx-2-32"), unquantized=weights)
    observed = value_check.warm_up_row(rough, torch.Generator().manual_seed(0))
    rough_db = closeness_db(rough, observed)
    assert rough_db is not None
    assert rough_db < 20


def test_a_prompt_that_does_not_fit_is_named() -> None:
    theirs, _ = engines()
    check = partial(refusal, theirs.check_prompt, error=PromptError)
    assert check(tokens(1, 38), max_new_tokens=3) == (
        "prompt: 38 tokens + 3 new ones do not fit the cache of 40 positions"
    )
    assert check(tokens(2, 5), max_new_tokens=3) == (
        "prompt: a batch of 2 is not allowed; the caches hold 1"
    )
    assert check(tokens(1, 5), max_new_tokens=3, lengths=torch.tensor([2])) == (
        "lengths: not allowed with engine 'transformers'"
    )


@pytest.mark.parametrize("name", architectures.MODELS)
def test_each_architecture_runs_as_its_own_class(name: str, tmp_path: Path) -> None:
    read = open_weights(architectures.save(name, tmp_path))
    theirs = build_transformers_model(read, **BUILD)
    options = EngineOptions(batch_size=2, cache_size=40)
    engine = TransformersEngine(theirs, options)
    ids, wanted = architectures.IDS, architectures.expected(name)
    places = torch.arange(ids.shape[1]).expand(2, -1)
    close(engine.plain_logits(ids, places), wanted)
    # Token by token, over its cache, whose windows roll.
    close(torch.stack([*engine.read(ids, 9)], dim=1), wanted[:, 8:-1])
    ours = Engine(build_model(read, **BUILD), options)
    request: Any = {"max_new_tokens": 12, "sampling": GREEDY}
    prompt = ids[:, :9]
    generated = engine.generate(prompt, **request)
    assert torch.equal(generated, ours.generate(prompt, **request))
    weights = engine.layer_weights(1, lambda weight: weight)
    assert weights.keys() == read.layer(1).keys()
    assert all(torch.equal(weights[key], own) for key, own in read.layer(1).items())

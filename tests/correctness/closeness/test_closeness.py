"""Logits of SmolLM2, the arithmetic of closeness, and tokens of every scheme.

Compared: this project's reading of the GGUF with transformers', quantized models and
caches with the unquantized, native schemes with torchao's, products with the exact one,
greedy tokens with those of an earlier revision.
"""

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from llama_perf import generate, load_model, quantize_model
from llama_perf.checkpoints.saved import SAVED_KERNELS
from llama_perf.checkpoints.tokenizers.files import load_tokenizer
from llama_perf.devices import processor
from llama_perf.kernels import cache_codes, products
from llama_perf.kernels.weight import Packed
from llama_perf.llama.options import GREEDY
from llama_perf.rows.schemes import AUTOQUANT, FAMILIES, INT4_GROUP_SIZES, Scheme
from scripts.doc_tables import caches, figures, operators, smollm2, twins
from scripts.doc_tables import closeness as table
from scripts.doc_tables.document import Key
from scripts.doc_tables.figures import Closeness, closeness
from tests.correctness.checkpoints.test_safetensors import make_model
from tests.correctness.support.schemes import schemes_on
from tests.correctness.support.tokenizer_samples import smollm2_reference

# int4wo's other groups do not divide SmolLM2's K of 576. Of uintx one of each kind: one
# plane of codes, several, and the table's coarsest.
INT4 = [f"int4wo-{size}" for size in INT4_GROUP_SIZES if 576 % size == 0]
UINTX = ("uintx-4-64", "uintx-5-32", "uintx-2-8")
GROUPED = (*INT4, *(f"{name}-hqq" for name in INT4), *UINTX)
BUILT = [
    (scheme, kernels)
    for kernels in SAVED_KERNELS
    for scheme in schemes_on(kernels, grouped=GROUPED, autoquant=True)
]
KEYS = {*table.ROWS, *((*scheme, "unquantized") for scheme in BUILT)}


# By scheme: one that is compared with two models has its logits made once.
@pytest.mark.parametrize(
    "key",
    [
        pytest.param(key, marks=[pytest.mark.slow] * (key[:2] in table.SLOW))
        for key in sorted(KEYS)
    ],
    ids=".".join,
)
def test_a_scheme_keeps_the_logits_within_its_limits(key: Key) -> None:
    (scheme, kernels, reference), limits = key, table.ROWS.get(key, table.DEFAULT)
    compared, _ = smollm2.scheme_figures(scheme, kernels, limits.length, reference)
    assert limits.broken_by(compared) == []


@pytest.mark.parametrize("kind", caches.LIMITS)
def test_a_cache_keeps_the_logits_within_its_limits(kind: str) -> None:
    assert caches.LIMITS[kind].broken_by(caches.compared(kind)) == []


def test_chunks_through_a_cache_are_the_text_at_once() -> None:
    assert caches.long_tokens().shape == (1, caches.LENGTH)
    ids = caches.long_tokens()[:, :300]
    at_once = smollm2.unquantized().logits(ids)
    compared = closeness(at_once, caches.logits_with_cache(None)[:, :300], ids)
    assert compared.signal_to_noise_db > 80
    assert compared.top1 == 1.0


def test_damaged_scales_of_a_cache_break_the_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = cache_codes.quantize

    def damaged(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        codes, scale = original(x, kind)
        scale[:, :1] *= 1.25
        return codes, scale

    monkeypatch.setattr(cache_codes, "quantize", damaged)
    ids, exact = caches.long_tokens()[:, :512], caches.logits_with_cache(None)[:, :512]
    wrong = caches.logits_with_cache.__wrapped__("int8", 512)
    assert caches.LIMITS["int8"].broken_by(closeness(exact, wrong, ids))


def test_a_limit_holds_for_every_draw_of_an_activations_rounding() -> None:
    means = Closeness(20.0, 0.04, 0.9, -0.02)
    redraws = table.Redraws(means, Closeness(0.31, 0.001, 0.01, 0.01))
    limits = table.Limits(Closeness(18.1, 0.046, 0.84, 0.08))
    assert table.Limits.over(redraws) == limits
    # A scheme that rounds activations has no limit of another kind.
    rounded = {key for key in table.LIMITS if "dq" in key[0] or key[0] in AUTOQUANT}
    assert rounded == table.REDRAWN.keys()


def test_a_redraw_moves_rounded_activations_and_no_weights() -> None:
    """Of one short text: what a processor's order of sums is to a scheme."""
    moves = {}
    for scheme in ("int8wo", "int8dq"):
        model = smollm2.quantized(scheme, kernels="native")
        weight = model.tok_embeddings.weight
        before = weight.detach().clone()
        ids = smollm2.tokens()[:, :24]
        first, second = (model.logits(ids) for _ in table.moved(weight, 2))
        moves[scheme] = (second - first).square().mean() / first.square().mean()
        assert torch.equal(weight, before)
    assert moves["int8wo"] < 1e-9
    assert 1e-5 < moves["int8dq"] < 1e-1


@pytest.mark.parametrize(
    ("low", "high", "dtype"), [(-128, 127, torch.int8), (0, 255, torch.uint8)]
)
def test_the_product_of_integers_is_exact_and_torchs(
    low: int, high: int, dtype: torch.dtype
) -> None:
    # torchao shifts activations to uint8 for VNNI.
    a = torch.randint(low, high + 1, (32, 1536)).to(dtype)
    b = torch.randint(-128, 128, (1536, 24)).to(torch.int8)
    a[0], a[1], b[:, 0] = low, high, -128
    product = figures.exact_int_mm(a, b)
    assert product.dtype == torch.int32
    assert torch.equal(product.long(), a.long() @ b.long())
    # Where ONEDNN_MAX_CPU_ISA takes VNNI away, torch's saturate.
    same = torch.equal(product, torch._int_mm(a, b))
    assert same == processor.int8_products_are_exact()


def test_what_is_documented_is_what_is_checked() -> None:
    assert table.LIMITS.keys() <= set(BUILT)
    rows = table.TABLE.documented()
    assert {key: [row[0], *row[2::2]] for key, row in rows.items()} == {
        key: [table.tokens_cell(limits), *limits.cells()]
        for key, limits in table.ROWS.items()
    }
    drawn = {key: table.redraw_cells(draws) for key, draws in table.REDRAWN.items()}
    assert table.REDRAWS.documented() == drawn
    redrawn = caches.REDRAWN
    drawn = {(kind,): caches.cells(kind, redrawn[kind]) for kind in caches.LIMITS}
    assert caches.TABLE.documented() == drawn
    assert list(operators.TABLE.documented()) == list(operators.SCHEMES)
    pairs = twins.TABLE.documented()
    assert tuple(scheme for (scheme,) in pairs) == twins.TWINS
    assert max(float(row[3]) for row in pairs.values()) <= 2.0, "none is further"


@pytest.mark.parametrize(
    "key",
    [
        ("int8wo", "torchao", "unquantized"),
        # Whose limits are the widest.
        pytest.param(("sparse-marlin", "native", "pruned"), marks=pytest.mark.slow),
    ],
    ids=".".join,
)
def test_damaged_scales_of_one_layer_break_a_limit(key: Key) -> None:
    scheme, kernels, reference = key
    model = smollm2.quantized(scheme, kernels=kernels)
    weight: Any = model.get_submodule("layers.14.feed_forward.w2").weight
    with torch.no_grad():
        weight.scale[: len(weight.scale) // 8] *= 3
    assert table.ROWS[key].broken_by(smollm2.compared(model, reference=reference))


def test_a_model_is_close_to_itself() -> None:
    ids, logits = smollm2.tokens()[:, :100], smollm2.reference_logits()[:, :100]
    compared = closeness(logits, smollm2.unquantized().logits(ids), ids)
    assert compared.signal_to_noise_db > 100
    assert compared.top1 == 1.0
    assert compared.perplexity_change == pytest.approx(0, abs=1e-6)
    assert compared.kl_nats == pytest.approx(0, abs=1e-9)


def test_the_arithmetic_on_logits_made_by_hand() -> None:
    ids = torch.tensor([[0, 1, 2, 3]])
    assert figures.perplexity(torch.zeros((1, 4, 4)), ids) == pytest.approx(4.0)
    sure = torch.full((1, 4, 4), -50.0)
    for position, following in enumerate((1, 2, 3)):
        sure[0, position, following] = 50.0
    assert figures.perplexity(sure, ids) == pytest.approx(1.0)
    # Power 1 of the signal, power 0.01 of the noise: 20 dB.
    signal = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]])
    noisy = signal + 0.1 * torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]])
    two = torch.tensor([[0, 1]])
    shifted = closeness(signal, noisy, two)
    assert shifted.signal_to_noise_db == pytest.approx(20.0, abs=1e-4)
    # The same shift of all logits changes no distribution.
    assert shifted.kl_nats == pytest.approx(0, abs=1e-7)
    flipped = closeness(signal, -signal, two)
    assert flipped.top1 == 0.0
    p = 1 / (1 + math.exp(-2))
    assert flipped.kl_nats == pytest.approx((2 * p - 1) * 2, rel=1e-6)
    # The first two positions of 40.
    longer, many = signal.repeat(1, 20, 1), torch.zeros((1, 40), dtype=torch.int64)
    partly = closeness(longer, torch.cat((-signal, longer[:, 2:]), 1), many)
    assert partly.signal_to_noise_db == pytest.approx(10 * math.log10(5))
    assert partly.kl_nats == pytest.approx(flipped.kl_nats / 20)


# The next test multiplies with the weights of int8dq as well.
@pytest.mark.parametrize(
    "scheme", [*twins.QUICK, pytest.param("int8dq", marks=pytest.mark.slow)]
)
def test_a_native_model_is_no_further_than_torchaos_twin(scheme: str) -> None:
    pair = twins.twins(scheme)
    assert not pair.further, pair


# At the beginning, in the middle and at the end; or all.
BLOCKS: Any = [(0, 4, 14, 29), pytest.param(range(30), marks=pytest.mark.slow)]


@pytest.mark.parametrize("blocks", BLOCKS, ids=len)
def test_native_int8dq_rounds_the_same_activations_as_well_as_torchao(
    blocks: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert twins.products_ratio("int8dq", blocks=blocks) <= twins.MAX_PRODUCTS_RATIO
    original = products.quantize_tokens

    def coarser(x: Tensor, activations: Any) -> tuple[Tensor, Tensor]:
        _, scale = original(x, activations)
        scale = scale * 1.02
        return torch.round(x / scale).to(torch.int8), scale

    monkeypatch.setattr(products, "quantize_tokens", coarser)
    assert twins.products_ratio("int8dq", blocks=(4, 14)) > twins.MAX_PRODUCTS_RATIO


def test_a_difference_at_most_positions_is_distinguished_from_chance() -> None:
    hard = torch.rand(400, dtype=torch.float64)
    noise = torch.randn(400, dtype=torch.float64) * 0.02
    assert twins.compare_twins(hard * 1.1, hard + noise * 0.1).further
    assert not twins.compare_twins(hard, hard * 1.1 + noise * 0.1).further
    assert not twins.compare_twins(hard + noise - noise.mean(), hard).further
    # Where both hold the same weights nothing but rounding differs.
    assert twins.compare_twins(hard, hard).errors == 0
    assert not twins.compare_twins(hard + 1e-7 + noise * 1e-7, hard).further


@pytest.mark.parametrize("key", operators.SCHEMES, ids=".".join)
def test_a_product_is_exact_up_to_rounding(key: Key) -> None:
    db_by_tokens = operators.operator_db(*key)
    assert db_by_tokens.keys() == set(operators.TOKENS)
    assert min(db_by_tokens.values()) >= operators.MIN_DB


def test_a_product_that_is_a_little_off_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = products.product

    def off(x: Tensor, weight: Packed) -> Tensor:
        product = exact(x, weight)
        # The unit vectors, from which the weight is read, keep their products.
        return product if len(x) > 17 else product + 1e-5 * product.abs().max()

    monkeypatch.setattr(products, "product", off)
    assert max(operators.operator_db("int8wo", "native").values()) < operators.MIN_DB


def test_tokens_logits_and_perplexity_equal_transformers() -> None:
    """By their configuration, dequantization, layout of weights, and model."""
    from transformers import AutoModelForCausalLM

    path, ours = smollm2.smollm2_path(), smollm2.reference_logits()
    ids = smollm2.tokens()
    assert ids.shape[1] > 400
    assert smollm2_reference().encode(smollm2.TEXT) == ids[0].tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        # gguf takes three times as long to read a vocabulary from a memory map.
        patch.setattr(np, "memmap", lambda path, **_: np.fromfile(path, np.uint8))
        # Both are asked for anew many times, for the same.
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, name, cache(getattr(gguf, name)))
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True, dtype=torch.float32
        )
    with torch.no_grad():
        theirs = model(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    perplexity = figures.perplexity(ours, ids)
    assert perplexity == pytest.approx(figures.perplexity(theirs, ids), rel=1e-5)
    assert 5 < perplexity < 30, "a model that does not read English has hundreds"


def test_the_capital_of_france_is_paris() -> None:
    tokenizer = load_tokenizer(smollm2.smollm2_path())
    text = "The capital of France is"
    prompt, model = torch.tensor([tokenizer.encode(text)]), smollm2.unquantized()
    out = generate(model, prompt, max_new_tokens=4, sampling=GREEDY)
    assert tokenizer.decode(out[0].tolist()).startswith(f"{text} Paris")


# Recorded at revision 90278db, before the package was rebuilt. Only tokens are kept
# whose logit leads the next best by 6 % of the logits' standard deviation or more, so
# that another processor's rounding cannot change them.
GOLDEN: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "support" / "golden_tokens.json").read_text()
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with weights drawn by numpy, alike on every machine."""
    folder = tmp_path_factory.mktemp("golden")
    generator = np.random.default_rng(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 256}
    model = make_model(**sizes).requires_grad_(False)
    weights = model.state_dict()
    # The layers' are drawn last.
    for name in sorted(weights, key=lambda name: "layers" in name):
        if "norm" not in name:
            drawn = generator.standard_normal(tuple(weights[name].shape), np.float32)
            weights[name].copy_(torch.from_numpy(drawn * 0.08))
    model.model.embed_tokens.weight.mul_(12)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("key", GOLDEN)
def test_greedy_tokens_stay_the_same(key: str, checkpoint: Path) -> None:
    scheme, kernels = key.split(".")
    golden = GOLDEN[key]
    model = load_model(checkpoint)
    if scheme != "none":
        model = quantize_model(model, scheme, kernels=kernels)
    prompt = (torch.arange(12) * golden["start"] + golden["start"]) % 256
    count = len(golden["tokens"])
    tokens = generate(model, prompt[None], max_new_tokens=count, sampling=GREEDY)
    assert tokens[0, len(prompt) :].tolist() == golden["tokens"]


def test_every_family_of_schemes_has_golden_tokens() -> None:
    recorded = {key.split(".")[0] for key in GOLDEN} - {"none"}
    families = {Scheme.parse(name).family for name in recorded}
    assert families <= set(FAMILIES) - set(AUTOQUANT)
    # Those of today; tokens of a new family may be recorded later.
    assert len(families) >= 9

"""Quantized SmolLM2 compared with the unquantized, and the arithmetic of closeness.

Also with a quantized cache, on a long text.
"""

import math
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor

from llama_perf.devices import processor
from llama_perf.kernels import cache_codes
from llama_perf.rows.schemes import AUTOQUANT, INT4_GROUP_SIZES
from llama_perf.rows.spec import KERNELS
from scripts.doc_tables import caches, smollm2
from scripts.doc_tables import closeness as table
from scripts.doc_tables.closeness import LIMITS, ROWS, Redraws, moved
from scripts.doc_tables.document import Key
from scripts.doc_tables.figures import Closeness, closeness, exact_int_mm, perplexity
from tests.correctness.support.schemes import schemes_on

# int4wo's other groups do not divide SmolLM2's K of 576. Of uintx one of each kind: one
# plane of codes, several, and the table's coarsest.
INT4 = [f"int4wo-{size}" for size in INT4_GROUP_SIZES if 576 % size == 0]
UINTX = ("uintx-4-64", "uintx-5-32", "uintx-2-8")
GROUPED = (*INT4, *(f"{name}-hqq" for name in INT4), *UINTX)
BUILT = [
    (scheme, kernels)
    for kernels in KERNELS
    for scheme in schemes_on(kernels, grouped=GROUPED, autoquant=True)
]
KEYS = {*ROWS, *((scheme, kernels, "unquantized") for scheme, kernels in BUILT)}


def marked(key: Key) -> ParameterSet:
    marks = [pytest.mark.slow] if key[:2] in table.SLOW else []
    return pytest.param(key, id=".".join(key), marks=marks)


# By scheme: one that is compared with two models has its logits made once.
@pytest.mark.parametrize("key", [marked(key) for key in sorted(KEYS)])
def test_a_scheme_keeps_the_logits_within_its_limits(key: Key) -> None:
    (scheme, kernels, reference), limits = key, ROWS.get(key, table.DEFAULT)
    figures, _ = smollm2.scheme_figures(scheme, kernels, limits.length, reference)
    assert limits.broken_by(figures) == []


@pytest.mark.parametrize("kind", caches.LIMITS)
def test_a_cache_keeps_the_logits_within_its_limits(kind: str) -> None:
    assert caches.LIMITS[kind].broken_by(caches.compared(kind)) == []


def test_chunks_through_a_cache_are_the_text_at_once() -> None:
    assert caches.long_tokens().shape == (1, caches.LENGTH)
    start = 600
    ids = caches.long_tokens()[:, :start]
    at_once = smollm2.unquantized().logits(ids)
    figures = closeness(at_once, caches.logits_with_cache(None)[:, :start], ids)
    assert figures.signal_to_noise_db > 80
    assert figures.top1 == 1.0


def test_damaged_scales_of_a_cache_break_the_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = cache_codes.quantize

    def damaged(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        codes, scale = original(x, kind)
        scale[:, :1] *= 1.25
        return codes, scale

    monkeypatch.setattr(cache_codes, "quantize", damaged)
    length = 512
    ids = caches.long_tokens()[:, :length]
    exact = caches.logits_with_cache(None)[:, :length]
    wrong = caches.logits_with_cache.__wrapped__("int8", length)
    assert caches.LIMITS["int8"].broken_by(closeness(exact, wrong, ids))


def test_a_limit_holds_for_every_draw_of_an_activations_rounding() -> None:
    means = Closeness(20.0, 0.04, 0.9, -0.02)
    redraws = Redraws(means, Closeness(0.31, 0.001, 0.01, 0.01))
    limits = table.Limits(Closeness(18.1, 0.046, 0.84, 0.08))
    assert table.Limits.over(redraws) == limits
    # A scheme that rounds activations has no limit of another kind.
    rounded = {key for key in LIMITS if "dq" in key[0] or key[0] in AUTOQUANT}
    assert rounded == table.REDRAWN.keys()


def test_a_redraw_moves_rounded_activations_and_no_weights() -> None:
    """Of one short text: what a processor's order of sums is to a scheme."""
    moves = {}
    for scheme in ("int8wo", "int8dq"):
        model = smollm2.quantized(scheme, kernels="native")
        weight = model.tok_embeddings.weight
        before = weight.detach().clone()
        ids = smollm2.tokens()[:, :24]
        first, second = (model.logits(ids) for _ in moved(weight, 2))
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
    draw = torch.Generator().manual_seed(0)
    a = torch.randint(low, high + 1, (32, 1536), generator=draw).to(dtype)
    b = torch.randint(-128, 128, (1536, 24), generator=draw).to(torch.int8)
    a[0], a[1], b[:, 0] = low, high, -128
    product = exact_int_mm(a, b)
    assert product.dtype == torch.int32
    assert torch.equal(product.long(), a.long() @ b.long())
    # Where ONEDNN_MAX_CPU_ISA takes VNNI away, torch's saturate.
    same = torch.equal(product, torch._int_mm(a, b))
    assert same == processor.int8_products_are_exact()


def test_the_documented_limits_are_those_that_are_checked() -> None:
    assert LIMITS.keys() <= set(BUILT)
    rows = table.TABLE.documented()
    assert {key: [row[0], *row[2::2]] for key, row in rows.items()} == {
        key: [table.tokens_cell(limits), *limits.cells()]
        for key, limits in ROWS.items()
    }
    drawn = {key: table.redraw_cells(draws) for key, draws in table.REDRAWN.items()}
    assert table.REDRAWS.documented() == drawn
    drawn = {
        (kind,): caches.cells(kind, caches.REDRAWN[kind]) for kind in caches.LIMITS
    }
    assert caches.TABLE.documented() == drawn


@pytest.mark.parametrize(
    "key",
    [("int8wo", "torchao", "unquantized"), ("sparse-marlin", "native", "pruned")],
    ids=".".join,
)
def test_damaged_scales_of_one_layer_break_a_limit(key: Key) -> None:
    scheme, kernels, reference = key
    model = smollm2.quantized(scheme, kernels=kernels)
    weight: Any = model.get_submodule("layers.14.feed_forward.w2").weight
    with torch.no_grad():
        weight.scale[: len(weight.scale) // 8] *= 3
    assert ROWS[key].broken_by(smollm2.compared(model, reference=reference))


def test_a_model_is_close_to_itself() -> None:
    ids, logits = smollm2.tokens(), smollm2.reference_logits()
    figures = closeness(logits, smollm2.unquantized().logits(ids), ids)
    assert figures.signal_to_noise_db > 100
    assert figures.top1 == 1.0
    assert figures.perplexity_change == pytest.approx(0, abs=1e-6)
    assert figures.kl_nats == pytest.approx(0, abs=1e-9)


def test_the_arithmetic_on_logits_made_by_hand() -> None:
    ids = torch.tensor([[0, 1, 2, 3]])
    even = torch.zeros((1, 4, 4))
    assert perplexity(even, ids) == pytest.approx(4.0)
    sure = torch.full((1, 4, 4), -50.0)
    for position, following in enumerate((1, 2, 3)):
        sure[0, position, following] = 50.0
    assert perplexity(sure, ids) == pytest.approx(1.0)
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

"""All layers of a step as one kernel, against five a layer: see `test_fused.py`."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from llama_perf.errors import NotRunnable
from llama_perf.llama.persistent import PersistentStep
from llama_perf.quantize.apply import make_quantizer
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.engines import distance, engine
from tests.correctness.support.errors import refusal
from tests.correctness.support.fused import CLOSE, small_model


@pytest.mark.parametrize(
    ("scheme", "dtype", "batch", "fields"),
    [
        (None, torch.bfloat16, 1, {}),
        ("int4wo-32", torch.float16, 2, {"kv_cache": "int8"}),
        ("fp6", torch.float16, 1, {}),
        ("int8dq", torch.bfloat16, 3, {"kv_cache": "fp8"}),
        ("sparse-marlin", torch.bfloat16, 2, {"lengths": [1, 3]}),
        # Blocks that programs take in turn, and splits of columns.
        ("int8wo", torch.float16, 1, {"intermediate_size": 1100}),
    ],
    ids=str,
)
def test_steps_are_those_of_five_kernels_a_layer(
    scheme: str | None,
    dtype: torch.dtype,
    batch: int,
    fields: dict[str, Any],
    card: torch.device,
) -> None:
    """Logits and caches, step after step: nothing is left over from the one before."""
    fields = dict(fields)
    changed = {"intermediate_size": fields.pop("intermediate_size", 64)}
    own = fields.pop("lengths", None)
    model = small_model(scheme, card, dtype, n_layers=2, **changed)
    options = {"batch_size": batch, "cache_size": 24, **fields}
    expected = engine(model, **options, fused=True)
    actual = engine(model, **options, fused="persistent")
    prompt = torch.arange(3 * batch, device=card).view(batch, 3) + 5
    lengths = None if own is None else torch.tensor(own, device=card)
    expected.prefill(prompt, lengths)
    actual.prefill(prompt, lengths)
    token = prompt[:, :1]
    position = torch.tensor([3], device=card)
    if lengths is not None:
        position = lengths[:, None]
    for _ in range(2):
        logits = expected.decode(token, position)
        assert distance(actual.decode(token, position), logits) < CLOSE[dtype]
        token, position = logits.argmax(-1, keepdim=True), position + 1
    for own, other in zip(actual.caches, expected.caches, strict=True):
        pairs = zip(own.dequantized(), other.dequantized(), strict=True)
        assert all(distance(ours, theirs) < CLOSE[dtype] for ours, theirs in pairs)
    step = actual._fused
    assert isinstance(step, PersistentStep)
    assert not step._split_counter.any()
    assert step._kernel is not None
    assert not step._kernel._arrivals.any()
    assert step._kernel._plans or card.type == "cpu"


def test_layers_must_be_alike(card: torch.device) -> None:
    for names, reason in (
        (["layers.1"], "layers.1 and layers.0"),
        (["layers.0.attention.wo", "layers.1.attention.wo"], "the linears of layers.0"),
    ):
        model = small_model(None, card, torch.bfloat16, n_layers=2)
        for name in names:
            quantize = make_quantizer(
                "int8wo", kernels="native", device=card, dtype=model.dtype
            )
            quantize(model.get_submodule(name), name)
        refused = refusal(engine, model, error=NotRunnable, fused="persistent")
        assert f"{reason} are quantized in two ways" in refused


def test_rows_say_so_and_a_cpu_has_no_such_kernel() -> None:
    row: dict[str, Any] = {"model": "Llama-2-7b-chat-hf", "fused": "persistent"}
    assert RowSpec(**row).id.endswith(".eager.persistent")
    plain = RowSpec(**{**row, "fused": True})
    assert plain.id.endswith(".eager.fused")
    assert plain.fingerprint != RowSpec(**row).fingerprint
    assert refusal(RowSpec, **{**row, "fused": "all"}).startswith(
        "fused: 'all' is not allowed; allowed: false, true, persistent"
    )
    refused = refusal(RowSpec, **row, device="cpu", dtype="float32")
    assert refused == "fused: 'persistent' is not allowed; it needs device 'cuda'"
    model = small_model(None, torch.device("cpu"))
    refused = refusal(engine, model, error=NotRunnable, fused="persistent")
    assert refused == "fused: 'persistent' needs device 'cuda'"

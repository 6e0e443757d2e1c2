"""A row that computes wrong values has no speed."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from llama_perf.errors import ValuesError
from llama_perf.llama.compiler import compiler_settings
from llama_perf.measure import value_check
from llama_perf.measure.prepare import PreparedRow, prepare_row
from llama_perf.measure.value_check import DEQUANTIZED, OPERATORS
from llama_perf.results.measurement import ValueCheck
from llama_perf.results.run import Status
from llama_perf.rows.choices import KERNELS
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import RunRequest
from llama_perf.run.session import Session
from tests.correctness.support import engines
from tests.correctness.support.schemes import schemes_on


def built(**fields: Any) -> PreparedRow:
    wanted = {"device": "cpu", "dtype": "float32", "max_new_tokens": 12, **fields}
    row = RowSpec(model="small", **wanted)
    return prepare_row(row, checkpoints=engines.small_checkpoints())


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def checked(prepared: PreparedRow, *, damaged: bool = False) -> ValueCheck:
    observed = value_check.warm_up_row(prepared, seeded(), damaged=damaged)
    return value_check.check_row_values(prepared, observed)


def passes_unless_damaged(prepared: PreparedRow, *, against: str) -> ValueCheck:
    check = checked(prepared)
    assert check.against == against
    reason = (
        rf"(against the {against}|NaN or infinity), and at least {check.least_db} dB"
    )
    with pytest.raises(ValuesError, match=reason):
        checked(prepared, damaged=True)
    return check


@pytest.mark.parametrize(
    ("scheme", "kernels"),
    [
        (None, "native"),
        *((scheme, kernels) for kernels in KERNELS for scheme in schemes_on(kernels)),
    ],
)
def test_a_right_row_passes_and_a_damaged_scale_does_not(
    scheme: str | None, kernels: str
) -> None:
    prepared = built(quantization=scheme, kernels=kernels)
    check = passes_unless_damaged(prepared, against=DEQUANTIZED)
    assert check.tokens == 9
    assert check.signal_to_noise_db > check.least_db
    # The damage is undone.
    again = checked(prepared)
    assert again.signal_to_noise_db == check.signal_to_noise_db


def test_weights_whose_codes_cannot_be_read_are_compared_with_their_operators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of a layout that is not known no code says where it lies.
    monkeypatch.setattr(value_check, "_codes", lambda x: torch.zeros(2 * x.numel()))
    value_check._places.cache_clear()
    prepared = built(quantization="int4wo-32", kernels="torchao")
    passes_unless_damaged(prepared, against=OPERATORS)


# Whole blocks, rows behind them that fill none, and more than are unpacked at once.
@pytest.mark.parametrize("rows", [64, 288, 144, 1040])
def test_the_codes_that_torchao_packs_for_cpus_are_read(rows: int) -> None:
    from torchao.prototype.quantization.int4.int4_opaque_tensor import Int4OpaqueTensor

    weight, x = torch.randn(rows, 96), torch.randn(3, 96)
    packed = Int4OpaqueTensor.from_hp(weight, [1, 32])
    wanted = torch.nn.functional.linear(x, packed)
    actual = x @ value_check.dequantized_int4(packed).T
    torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", [None, "int8wo", "int8dq"])
def test_a_compiled_row_is_compared_with_its_operators(scheme: str | None) -> None:
    with compiler_settings():
        prepared = built(quantization=scheme, compile=True)
        passes_unless_damaged(prepared, against=OPERATORS)


@pytest.mark.parametrize(
    "fields",
    [
        {"fill": 20},
        {"fill": 20, "kv_cache_quantization": True},
        {"kv_cache_quantization": "fp8"},
        {"attention": "sdpa", "cache_size": 64},
        {"attention": "sdpa", "linear_causal_mask": True, "fill": 7},
        {"batch_size": 3},
        {"batch_size": 3, "ragged": True, "fill": 5},
        {"prompt_length": 100, "prefill_chunk": 16},
        {"max_new_tokens": 1},
        {"temperature": 0.0, "top_k": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("against", [DEQUANTIZED, OPERATORS])
def test_rows_of_every_kind_are_compared(
    fields: dict[str, Any], against: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = built(**fields)
    if against == OPERATORS:
        # What is compared is the same, and compiling each takes long.
        monkeypatch.setattr(value_check, "_needs_dequantized", lambda *_: False)
    check = passes_unless_damaged(prepared, against=against)
    # Rounding to the codes of a cache may turn; everything else is float32's.
    assert check.signal_to_noise_db > (30 if prepared.row.kv_cache else 90)


def test_a_position_one_too_large_is_found() -> None:
    engine: Any = (prepared := built()).engine
    decode = engine.decode
    engine.decode = lambda token, position: decode(token, position + 1)
    with pytest.raises(ValuesError):
        checked(prepared)


@pytest.mark.parametrize(
    ("above", "refusal"),
    [
        # An error in a single row of the head leaves much signal, and another token.
        (0.02, "tokens 1 not the same, 1 of them by more"),
        (torch.nan, "logits hold NaN or infinity"),
    ],
)
def test_one_wrong_logit_is_no_tie(
    monkeypatch: pytest.MonkeyPatch, above: float, refusal: str
) -> None:
    prepared = built(temperature=0.0)
    observe = prepared.engine.observe

    def wrong(*arguments: Any, **options: Any) -> Any:
        tokens, logits = observe(*arguments, **options)
        logits[0, 4, 17] = logits[0, 4].max() + above
        return tokens, logits

    monkeypatch.setattr(prepared.engine, "observe", wrong)
    monkeypatch.setattr(value_check, "_DTYPE_DB", {"float32": 0.0})
    with pytest.raises(ValuesError, match=refusal):
        checked(prepared)


# A short row pays for the comparison alone, and where its generation is no longer than
# what is observed, too.
@pytest.mark.parametrize(("length", "new"), [(6, 12), (6, 9), (100, 12)])
def test_the_first_tokens_are_observed_and_draw_no_more(length: int, new: int) -> None:
    prepared = built(prompt_length=length, max_new_tokens=new)
    generator, alike = seeded(), seeded()
    observed = value_check.warm_up_row(prepared, generator)
    tokens = prepared.engine.generate(prepared.prompt, **prepared.request(alike, 9))
    assert torch.equal(generator.get_state(), alike.get_state())
    assert observed.tokens.shape == (1, observed.generated) == (1, 9)
    assert (observed.seconds == 0.0) == (length == 6)
    if length == 6:
        assert torch.equal(observed.tokens, tokens[:, length:][:, :9])


def test_a_damaged_row_is_invalid_and_the_next_one_is_measured() -> None:
    row = RowSpec(model="stories15M", device="cpu", dtype="float32")
    row = replace(row, max_new_tokens=4, num_samples=1)
    session = Session(["cpu"], options=RunRequest(inject_damage=("*int8wo*",)))
    damaged = session.run_row(replace(row, quantization="int8wo"))
    assert damaged.status is Status.INVALID
    assert (damaged.reason or "").startswith("check: its logits have ")
    undamaged = session.run_row(row).measurement
    assert undamaged is not None
    check = undamaged.check
    assert check is not None
    assert check.signal_to_noise_db > 60

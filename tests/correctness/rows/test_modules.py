"""Which linears a row's `modules` selects, its one form, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest

from llama_perf.errors import SpecError
from llama_perf.llama.presets import PRESETS
from llama_perf.rows.modules import ModuleFilter
from llama_perf.rows.spec import RowSpec
from tests.correctness.support.errors import refusal
from tests.correctness.support.weights_samples import TINY

ROW = RowSpec(model="tiny", quantization="int8wo", modules="*.feed_forward.*")
NAMES = replace(TINY, n_layers=2).linear_names


@pytest.mark.parametrize(
    ("modules", "names"),
    [
        (None, NAMES),
        ("*", NAMES),
        ("output", ["output"]),
        ("!output", NAMES[:-1]),
        ("layers.1.attention.*", NAMES[5:7]),
        ("*.w?,!layers.0.*", NAMES[6:10]),
        ("*.w[13]", [*NAMES[2:4], *NAMES[7:9]]),
        ("output, *.wo", [NAMES[1], NAMES[6], "output"]),
    ],
)
def test_linears_are_selected_by_globs(modules: str | None, names: list[str]) -> None:
    selected = ModuleFilter.parse(modules)
    assert [name for name in NAMES if selected.selects(name)] == names
    selected.check(NAMES)


def test_the_names_are_those_of_the_models_linears() -> None:
    config = PRESETS["Llama-3.1-8B"]
    assert len(config.linear_names) == 32 * 5 + 1
    assert config.linear_names[-2:] == ["layers.31.feed_forward.w2", "output"]


@pytest.mark.parametrize(
    ("modules", "token"),
    [
        ("*.feed_forward.*", "feed_forward"),
        ("!output", "not-output"),
        ("output,*.w1", "w1-output"),
        ("layers.1.*", "layers-1"),
        ("layers.1*", "layers-1-15ce"),
        ("!*.w?", "not-w-93fa"),
    ],
)
def test_the_id_has_a_short_token(modules: str, token: str) -> None:
    row = replace(ROW, modules=modules)
    assert row.id == f"tiny.int8wo.bf16.eager.modules-{token}"


def test_one_way_to_write_it_and_the_default_changes_nothing() -> None:
    one, other = "*.wo,output,!*.w1", " output , !*.w1,*.wo, output"
    rows = [replace(ROW, modules=text) for text in (one, other)]
    assert rows[0] == rows[1]
    plain = replace(ROW, modules=None)
    assert replace(ROW, modules="*") == plain
    assert plain.id == "tiny.int8wo.bf16.eager"
    assert "modules" not in plain.id
    assert len({ROW.fingerprint, plain.fingerprint, rows[0].fingerprint}) == 3
    assert ROW.unquantized == RowSpec(model="tiny")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"modules": ""}, "modules: '' is not allowed; write globs of linears"),
        ({"modules": "a,,b"}, "write globs of linears with commas between"),
        ({"modules": "feed forward"}, "write globs of linears with commas between"),
        ({"modules": "*.w1;output"}, "write globs of linears with commas between"),
        ({"modules": "x" * 201}, "at most 200 characters"),
        ({"quantization": None}, "an unquantized row quantizes no modules"),
        ({"quantization": "autoquant"}, "autoquant chooses for every linear"),
    ],
)
def test_what_selects_nothing_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError) as caught:
        replace(ROW, **change)
    assert reason in str(caught.value)


def test_a_glob_that_matches_no_linear_is_refused_with_the_names_there_are() -> None:
    there = (
        "there are layers.N.attention.wqkv, layers.N.attention.wo,"
        " layers.N.feed_forward.w1, layers.N.feed_forward.w3, layers.N.feed_forward.w2,"
        " output, N from 0 to 1"
    )
    selected = ModuleFilter.parse("output,*.mlp.*")
    message = refusal(selected.check, NAMES, error=SpecError)
    assert message == (
        "modules: '*.mlp.*,output' is not allowed; '*.mlp.*' matches no linear of the"
        f" model; {there}"
    )
    selected = ModuleFilter.parse("output,!o*")
    message = refusal(selected.check, NAMES, error=SpecError)
    assert message.endswith(f"it leaves no linear to be quantized; {there}")

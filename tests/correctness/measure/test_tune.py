"""Launches timed on a card: what is timed, what is chosen, and the table of them.

The timing itself needs a card; here the clock is made up.
"""

from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from llama_perf.cli.main import main
from llama_perf.devices import device
from llama_perf.errors import NotRunnable, RecordError
from llama_perf.kernels import launch_table
from llama_perf.kernels.launch_table import Choice, LaunchTable, launch_key
from llama_perf.kernels.weight import of_floats
from llama_perf.measure import tune as tuning
from llama_perf.measure.tune import best, candidates, products, tune
from llama_perf.quantize.autoquant.timing import Product
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec

ROW = RowSpec(model="Llama-2-7b-chat-hf", quantization="int8wo", fused=True)
CHOICE = Choice(block_u=64, splits=2, warps=4, stages=2, us=8.0, rule_us=9.0)
TRIED = list(candidates(unquantized=False))


def test_a_launch_that_the_card_has_no_room_for_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Triton's refusal is none of torch's errors."""
    errors = pytest.importorskip("triton.runtime.errors")
    refused = Mock(side_effect=errors.OutOfResources(300_000, 232_448, "shared memory"))
    monkeypatch.setattr(tuning, "warm_up", refused)
    product = Product(tokens=1, rows=32, columns=64, how="fused")
    time = tuning._clock(product, [(of_floats(torch.ones(32, 64)),)])
    assert time(CHOICE) == float("inf")


@pytest.mark.parametrize(
    ("first", "seconds", "others", "faster"),
    [
        (1.0, 0.8, 2.0, True),
        (1.0, 0.99, 2.0, False),
        (1.0, 1.0, 2.0, False),
        (1.0, 1.2, 2.0, False),
        # All alike; only the very first, the rule's, was disturbed.
        (2.0, 1.0, 1.0, False),
    ],
)
def test_the_fastest_is_chosen_with_both_times_where_it_is_clearly_faster(
    first: float, seconds: float, others: float, faster: bool
) -> None:
    rule, fast = chain([first], repeat(1.0)), TRIED[7]

    def time(choice: Choice | None) -> float:
        if choice is None:
            return next(rule)
        return seconds if choice == fast else others

    chosen = replace(fast, us=0.8e6, rule_us=1e6) if faster else None
    assert best(TRIED, time) == chosen


def test_the_products_are_those_of_the_fused_rows() -> None:
    fused = products([ROW, replace(ROW, fused=False, model="Meta-Llama-3-8B")])
    assert {(product.rows, product.columns, product.how) for _, product in fused} == {
        (12288, 4096, "fused"),
        (4096, 4096, "fused"),
        (11008, 4096, "fused gate"),
        (4096, 11008, "fused"),
        (32000, 4096, "fused"),
    }
    # A step and the prompt of six tokens.
    assert {product.tokens for _, product in fused} == {1, 6}
    assert len(fused) == 10
    assert not products([replace(ROW, fused=False), replace(ROW, device="cpu")])
    chosen = products([replace(ROW, quantization="autoquant", prompt_length=9)])
    assert {scheme for scheme, _ in chosen} == {"none", "int8wo", "int8dq"}
    assert {product.tokens for _, product in chosen} == {1}
    every = products(selection.load_set("reference"))
    assert len(every) == len(set(every))


def test_of_several_ranks_they_are_a_rank_s() -> None:
    row = RowSpec(model="Llama-3.1-70B", fused=True, tensor_parallel=8)
    shapes = {(product.rows, product.columns) for _, product in products([row])}
    assert shapes == {
        *((1280, 8192), (8192, 1024), (3584, 8192), (8192, 3584), (16032, 8192))
    }


def test_choices_are_kept_beside_those_of_other_cards(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    assert launch_table.read(path) == LaunchTable()
    launch_table.keep("card-a", {"x": CHOICE}, path)
    launch_table.keep("card-b", {"x": replace(CHOICE, splits=3)}, path)
    launch_table.keep("card-a", {"y": replace(CHOICE, warps=8)}, path)
    devices = launch_table.read(path).devices
    assert sorted(devices) == ["card-a", "card-b"]
    assert sorted(devices["card-a"]) == ["x", "y"]
    assert devices["card-b"]["x"].splits == 3
    # The package's own can be read.
    assert isinstance(launch_table.read(), LaunchTable)
    for change, refusal in (
        ({"block_u": 12}, r"devices\.card\.x\.block_u: 12; allowed"),
        ({"warps": 3}, r"devices\.card\.x\.warps: 3; allowed"),
        (
            {"splits": 0},
            r"devices\.card\.x\.splits: 0 is not allowed; .*greater than 0",
        ),
    ):
        launch_table.keep("card", {"x": replace(CHOICE, **change)}, path)
        with pytest.raises(RecordError, match=refusal):
            launch_table.read(path)
        path.unlink()


def test_keys_tell_products_apart() -> None:
    weight = of_floats(torch.empty(32, 64, dtype=torch.bfloat16, device="meta"))
    changes: list[dict[str, Any]] = [
        {},
        {"rows": 16},
        {"bits": 32},
        {"activations": "int8"},
    ]
    half, single = torch.bfloat16, torch.float32
    keys = {
        launch_key(replace(weight, **change), 1, half, weights=1) for change in changes
    }
    keys |= {launch_key(weight, 1, half, weights=2)}
    keys |= {launch_key(weight, 2, half, weights=1)}
    keys |= {launch_key(weight, 1, single, weights=1)}
    assert len(keys) == 7
    # Five tokens run as eight.
    five, eight = (launch_key(weight, tokens, half, weights=1) for tokens in (5, 8))
    assert five == eight


def test_a_launch_follows_its_choice() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from llama_perf.kernels.triton.launch_products import few_launch

    weight = of_floats(torch.empty(4096, 4096, dtype=torch.bfloat16, device="meta"))
    rule = few_launch(weight, 1, torch.bfloat16, fused=True)
    choice = replace(CHOICE, splits=5, warps=8, stages=3)
    tuned = few_launch(weight, 1, torch.bfloat16, fused=True, tuned=choice)
    # 64 units of eight columns: eight steps, of which five programs take two at most.
    assert (tuned.grid, tuned.constants["STEPS"]) == ((256, 4), 2)
    assert (tuned.warps, tuned.stages, tuned.constants["BLOCK_U"]) == (8, 3, 64)
    assert tuned.splits == 4
    assert rule.constants.keys() == tuned.constants.keys()
    assert rule.grid[1] * rule.constants["STEPS"] * rule.constants["BLOCK_U"] >= 512


def test_without_a_card_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotRunnable, match="tune: it needs a CUDA device, not cpu"):
        tune("int8wo", Product(tokens=1, rows=32, columns=64), torch.device("cpu"))
    assert main(["tune", "--set", "cpu"]) == 2
    said = "llama-perf: error: tune: it needs a CUDA GPU: no CUDA device on this mach"
    assert capsys.readouterr().err.startswith(said)


def test_rows_that_are_not_fused_have_nothing_to_tune(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "check_device", torch.device)
    assert main(["tune", "--set", "cpu", "--row", "*.none.*.eager.new-16"]) == 2
    assert capsys.readouterr().err == (
        "llama-perf: error: row: of 1 selected row none is fused on a CUDA GPU, so"
        " there is nothing to tune; choose others by --set, --rows or --row\n"
    )

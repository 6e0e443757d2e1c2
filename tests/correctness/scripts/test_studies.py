"""Each study's table, from figures made up; the studies themselves take an hour."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from llama_perf.cli.main import main
from llama_perf.gate.thresholds import Spread, detection_chance, minimum_detectable
from llama_perf.results.run import Status, Verdict
from llama_perf.rows import selection
from llama_perf.rows.spec import RowSpec
from llama_perf.run.time_left import Task
from llama_perf.strict_json import to_json
from scripts.studies import cache_cost, gate_study, llama_cpp
from scripts.studies import gate_simulation as gate
from scripts.studies import torchao_0_15 as peer
from scripts.studies.cache_cost import GROUPS, Timed
from scripts.studies.small_llama import PROMPT, make_checkpoint
from tests.correctness.support import record_samples
from tests.correctness.support.study_reports import report
from tests.correctness.support.terminals import quiet

ROW = RowSpec(
    model="stories15M", dtype="float32", device="cpu", max_new_tokens=3, num_samples=1
)


def test_rows_take_turns_and_each_round_is_kept() -> None:
    rows, display = [ROW, replace(ROW, cache_size=64)], quiet()
    display.plan([Task(id="round", name="round")] * 3)
    results = cache_cost.timed(rows, 3, checkpoints=None, display=display)
    assert [result.row for result in results] == rows
    assert [len(result.decode_ns) for result in results] == [3, 3]
    assert all(ns > 0 for result in results for ns in result.decode_ns)
    assert len(display.ended) == 3


def test_the_table_has_the_median_of_the_ratios_by_round() -> None:
    first = Timed(ROW, (10**9, 2 * 10**9, 10**9))
    # As fast, but for a round in which the machine was slow for both.
    second = Timed(replace(ROW, cache_size=64), (10**9, 2 * 10**9, 2 * 10**9))
    *_, line = cache_cost.table([[first, second]]).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == ["1.0", "1.000", "0.500 to 1.000"]
    assert first.tok_s == pytest.approx(2.0)


def test_the_rows_are_what_the_document_claims() -> None:
    assert [row.kv_cache for row in GROUPS[0]] == [None, None, "int8"]
    assert [row.allocated_positions for row in GROUPS[0][1:]] == [2048, 2048]
    assert GROUPS[0][0].max_new_tokens == 200
    for group in GROUPS[1:]:
        assert [row.allocated_positions for row in group] == [8192, 131072]
        assert {row.fill for row in group} == {200}
    written = cache_cost.PLACE.read()
    assert all(f"| {row.id} " in written for row in chain(*GROUPS))


@pytest.mark.parametrize("processes", gate.SIZES.values(), ids=gate.SIZES)
def test_unchanged_rows_hardly_ever_fail(processes: tuple[int, ...]) -> None:
    alarms = [
        gate.simulate(gate.CASES[name][0], processes, runs=600, seed=1).slower()
        for name in ("1.0%", "all four mixed")
    ]
    # At the rate that is allowed, four or more of 1200 come once in thirty times.
    assert np.concatenate(alarms).any(axis=1).sum() <= 3
    assert gate.MAX_FALSE_ALARMS * 1200 < 3


def test_a_screen_alone_would_alarm_in_every_tenth_run() -> None:
    runs = gate.simulate(gate.CASES["1.0%"][0], gate.SIZES["10"], runs=600, seed=1)
    assert (runs.screened > 0).any(axis=1).mean() > 0.05


@pytest.mark.parametrize("deviation", gate.DEVIATIONS)
def test_what_is_said_to_be_found_is_found(deviation: float) -> None:
    known = Spread(deviation=deviation, degrees=math.inf, processes=10)
    deviations = (deviation,) * gate.ROWS
    runs = gate.simulate(deviations, gate.SIZES["10"], runs=300, seed=2)
    smallest = minimum_detectable(known)
    # The simulated runs estimate the deviation, which widens their limits a little.
    assert 0.80 < runs.detected(smallest) < 0.95
    chance = detection_chance(-math.log1p(-smallest), known)
    assert runs.detected(smallest) <= chance + 0.03
    shares = [runs.detected(slowdown) for slowdown in gate.SLOWDOWNS]
    assert shares == sorted(shares)


def test_the_document_has_the_table_of_the_simulation() -> None:
    cells = gate.TABLE.documented()
    assert list(cells) == list(gate.TABLE.keys)
    for row in cells.values():
        assert float(row[0].removesuffix("%")) / 100 <= gate.MAX_FALSE_ALARMS
        assert len(row) == 1 + len(gate.SLOWDOWNS) + 1
    # One line anew, as it was computed for the document: draws are seeded.
    (key, row), *_ = cells.items()
    deviations, tails = gate.CASES[key[1]]
    runs = gate.simulate(deviations, gate.SIZES[key[0]], runs=1000, tails=tails)
    assert abs(runs.detected(0.02) - float(row[2].removesuffix("%")) / 100) < 0.01


SAME, SLOWER, LARGER = Verdict.SAME, Verdict.SLOWER, Verdict.LARGER


def test_a_line_counts_rows_and_runs() -> None:
    runs = (report(SAME, SAME), report(SLOWER, SAME), report(SAME, LARGER))
    counted = ["none", "3", "6", "1", "1 (17%)", "2", "4.0%"]
    assert gate_study.cells(0, runs) == counted
    # Of a slowed run only the slowed rows.
    slowed = report(SLOWER, SAME, SLOWER, slowed=0.05)
    counted = ["5 %", "1", "2", "1", "1 (50%)", "1", "4.0%"]
    assert gate_study.cells(5, [slowed]) == counted
    run = report(Verdict.NOT_RUN, SAME)
    absent = record_samples.unmeasured(Status.NOT_RUN, "why")
    run = replace(run, results=(absent, run.results[1]))
    assert gate_study.cells(0, [run])[:3] == ["none", "1", "1"]
    studied = {percent: [report(SAME)] for percent in gate_study.SLOWDOWNS}
    lines = gate_study.table(studied).splitlines()
    assert len(lines) == 2 + len(gate_study.SLOWDOWNS)


def test_a_study_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_file = tmp_path / "rows.toml"
    rows_file.write_text(
        '[defaults]\nmodel = "tiny"\ndevice = "cpu"\n'
        '[[row]]\n[[row]]\nquantization = "int8wo"\n'
    )
    ran: list[list[str]] = []

    def command(words: Sequence[str], **_allowed: object) -> None:
        ran.append(list(words))
        if words[0] == "baseline":
            path = tmp_path / "work" / "baselines" / "some" / "baseline.json"
            path.parent.mkdir(parents=True)
            path.touch()
            return
        path = Path(words[words.index("--results") + 1])
        run = report(SAME, SAME)
        if len(ran) == 3:
            run = replace(run, results=(), comparisons=())
        path.write_text(to_json(run), encoding="utf-8")

    monkeypatch.setattr(gate_study, "llama_perf", command)
    words = ["--rows", str(rows_file), "--work", str(tmp_path / "work")]
    words += ["--runs", "2", "--slowed-runs", "2"]
    assert gate_study.main(words) == 0
    assert [words[0] for words in ran].count("baseline") == 1
    assert len(ran) == 1 + 2 + 2 * (len(gate_study.SLOWDOWNS) - 1)
    # Every second slowed run slows the quantized rows, the others the rest.
    slowed = [word for words in ran for word in words if word.endswith("=1")]
    assert [".int8wo." in word for word in slowed] == [True, False]
    ran.clear()
    gate_study.main([*words, "--resume"])
    # The one that had not come to its end.
    assert len(ran) == 1


def test_its_rows_are_long_enough_for_one_step_in_a_hundred() -> None:
    chosen = selection.load_file(gate_study.ROWS)
    assert min(row.max_new_tokens for row in chosen) > 100
    assert {row.device for row in chosen} == {"cpu"}
    for place in (gate_study.PLACE, gate_study.SET_PLACE):
        assert "a baseline of 5 processes:" in place.read()


TORCHAO = """\
Hello, my name is Union
Sample 1 | overall time 0.5000 s 40.00 tokens/sec | prefill time 0.1000 s decode 50.00\
 tokens/sec
Sample 2 | overall time 0.4000 s 50.00 tokens/sec | prefill time 0.0200 s decode 52.63\
 tokens/sec
"""
OURS = """\
weights: pth:Small; ready in 0.1 s
Time for inference 1: 0.50 sec total, 40.00 tokens/sec, time to first token 100.0 ms
"""


def ran(*tok_s: float) -> peer.Ran:
    return peer.Ran([peer.Rates(rate, 2 * rate, 10.0) for rate in tok_s])


def test_both_sides_samples_are_read_alike() -> None:
    first, _ = peer.read_samples("torchao", TORCHAO, 20)
    assert [first] == peer.read_samples("llama-perf", OURS, 20)
    assert first == pytest.approx((40, 19 / 0.4, 100))


def test_a_checkpoint_is_the_same_each_time_and_both_can_read_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, again = (make_checkpoint(tmp_path / name) for name in "ab")
    assert weights.read_bytes() == again.read_bytes()
    model = str(weights.parent / "tokenizer.model")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=model)
    assert len(tokenizer.encode(PROMPT, add_bos=True)) == 6
    shape = json.loads((weights.parent / "params.json").read_text(encoding="utf-8"))
    assert tokenizer.vocab_size() == shape["vocab_size"]

    row = peer.row_of(compile=False, max_new_tokens=3, num_samples=2)
    assert main(peer.command("llama-perf", row, weights, Path("unused"))[3:]) == 0
    output = capsys.readouterr().out
    samples = peer.read_samples("llama-perf", output, row.max_new_tokens)
    assert len(samples) == 2
    assert all(sample.decode_tok_s > 0 for sample in samples)
    assert peer.text_of(output).startswith(PROMPT)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("print('ValueError: 1'); raise KeyError('second')", "KeyError: 'second'"),
        (f"print({TORCHAO!r})", "2 samples instead of 3"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_a_process_that_fails_or_lacks_samples_leaves_its_error(
    code: str, problem: str, tmp_path: Path
) -> None:
    row = peer.row_of(num_samples=3, max_new_tokens=20)
    failed = peer.run("torchao", [sys.executable, "-c", code], row, tmp_path)
    assert (failed.problem, failed.rates) == (problem, ())


def test_the_table_has_medians_ratios_and_reasons() -> None:
    row, broken = (peer.row_of(quantization=name) for name in ("fp6", "sparse-marlin"))
    error = "NotImplementedError: no such kernel. It goes on for a page."
    processes: peer.Processes = {
        row: ([ran(10, 20, 30), ran(20, 20, 20)], [ran(30, 50, 70), ran(50, 50, 50)]),
        broken: ([peer.Ran(problem=error)], [ran(7)]),
    }
    ratios = [peer.ratio(*pair) for pair in processes.values()]
    assert ratios == pytest.approx([2.5, math.nan], nan_ok=True)
    table = peer.comparison_table(processes)
    assert "| fp6, compiled           | 20.00" in table
    assert "| 2.50, 2.50" in table
    assert "- sparse-marlin, compiled, torchao: `NotImplementedError: no such" in table
    assert "goes on" not in table


@pytest.mark.parametrize("side", peer.SIDES)
def test_a_row_with_a_larger_quantized_cache_is_one_of_both_sides(side: str) -> None:
    words = peer.command(side, peer.ROWS[-1], Path("model.pth"), Path("python"))
    assert words[words.index("--cache_size") + 1] == "2048"
    assert "--kv_cache_quantization" in words
    assert peer.name_of(peer.ROWS[-1]) == "none, eager, 200 tokens, cache 2048, int8 KV"


def test_a_row_that_writes_another_text_compiled_is_wrong() -> None:
    def run_side(side: str, row: RowSpec, *flags: str) -> peer.Ran:
        assert flags == ("--temperature", "0")
        return peer.Ran(output=f"{PROMPT} {side if row.compile else 'right'}")

    assert peer.greedy("right", peer.row_of(), run_side).problem is None
    assert peer.greedy("wrong", peer.row_of(compile=False), run_side).problem is None
    wrong = peer.greedy("wrong", peer.row_of(), run_side)
    assert str(wrong.problem).startswith("wrong values")


def test_llama_cpp_is_compared_by_medians_and_by_round() -> None:
    timed = llama_cpp.Timed
    peer = [timed([1.0, 1.0, 9.0], [0.5] * 3), timed([2.0], [1.0])]
    unquantized = [timed([4.0], [1.0], 20.0, 2.0), timed([4.0], [1.0], 40.0, 2.0)]
    row = [timed([0.5], [0.1], 10.0, 1.0), timed([0.5], [0.1], 10.0, 1.0)]
    names = ["llama.cpp", "none", "int8wo"]
    text = llama_cpp.comparison_table(names, [peer, unquantized, row], 10)
    cells = [line.split("|")[1:-1] for line in text.splitlines()[2:]]
    assert [[cell.strip() for cell in line] for line in cells] == [
        ["llama.cpp", "6.7", "1.00", "1.00, 1.00", "2.67", "12.0", "500.0", "-"],
        ["none", "2.5", "0.38", "0.25, 0.50", "1.00", "3.0", "1000.0", "19"],
        ["int8wo", "20.0", "3.00", "2.00, 4.00", "8.00", "22.5", "100.0", "200"],
    ]


def test_llama_cpp_is_compared_with_every_native_row_of_a_small_cache() -> None:
    first, *others = llama_cpp.rows(100)
    assert first.quantization is None
    assert {row.max_new_tokens for row in (first, *others)} == {100}
    schemes = {row.quantization for row in others}
    assert schemes >= {"int8wo", "int4wo-64", "fp6", "uintx-2-8", "sparse-marlin"}

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import sentencepiece

from llama_perf.cli.main import main
from scripts.studies.torchao_0_15.__main__ import (
    LARGE_CACHES,
    SMALL_CACHE,
    cache_table,
    comparison_table,
    ratio,
)
from scripts.studies.torchao_0_15.peer import (
    PROMPT,
    SIDES,
    Ran,
    Rates,
    Row,
    command,
    make_checkpoint,
    read_samples,
    run,
    text_of,
)
from tests.correctness.support.processes import HANG_S

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


def ran(*tok_s: float, problem: str | None = None) -> Ran:
    rates = tuple(
        Rates(tok_s=rate, decode_tok_s=2 * rate, first_token_ms=10.0) for rate in tok_s
    )
    return Ran(rates=rates, problem=problem, output="")


def test_both_sides_samples_are_read_alike() -> None:
    theirs, ours = (
        read_samples("torchao", TORCHAO, 20),
        read_samples(SIDES[1], OURS, 20),
    )
    assert len(theirs) == 2
    assert theirs[0] == ours[0]
    assert theirs[0].tok_s == pytest.approx(40)
    assert theirs[0].decode_tok_s == pytest.approx(19 / 0.4)
    assert theirs[0].first_token_ms == pytest.approx(100)


def test_what_generate_prints_is_what_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Row(compile=False, max_new_tokens=3, num_samples=2)
    weights = make_checkpoint(tmp_path)
    assert main(command("llama-perf", row, weights, Path("unused"))[3:]) == 0
    output = capsys.readouterr().out
    samples = read_samples("llama-perf", output, row.max_new_tokens)
    assert len(samples) == 2
    assert all(sample.decode_tok_s > 0 for sample in samples)
    assert text_of(output).startswith(PROMPT)


def test_the_checkpoint_is_the_same_each_time_and_its_prompt_has_six_tokens(
    tmp_path: Path,
) -> None:
    paths = [make_checkpoint(tmp_path / name) for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    tokenizer = sentencepiece.SentencePieceProcessor(
        model_file=str(paths[0].parent / "tokenizer.model")
    )
    assert len(tokenizer.encode(PROMPT, add_bos=True)) == 6
    shape = json.loads((paths[0].parent / "params.json").read_text(encoding="utf-8"))
    assert tokenizer.vocab_size() == shape["vocab_size"]


def test_a_process_that_fails_leaves_its_error(tmp_path: Path) -> None:
    code = "print('ValueError: first'); raise KeyError('second')"
    failed = run("torchao", [sys.executable, "-c", code], Row(), tmp_path, HANG_S)
    assert failed.problem == "KeyError: 'second'"
    assert failed.rates == ()


def test_a_process_without_all_its_samples_is_no_result(tmp_path: Path) -> None:
    code = f"print({TORCHAO!r})"
    row = Row(num_samples=3, max_new_tokens=20)
    failed = run("torchao", [sys.executable, "-c", code], row, tmp_path, HANG_S)
    assert failed.problem == "2 samples instead of 3"
    assert failed.rates == ()


def test_the_table_has_medians_ratios_and_reasons() -> None:
    row, broken = Row(quantization="fp6"), Row(quantization="sparse-marlin")
    error = "NotImplementedError: no such kernel. It goes on for a page."
    processes = {
        (row, "torchao"): [ran(10, 20, 30), ran(20, 20, 20)],
        (row, "llama-perf"): [ran(30, 50, 70), ran(50, 50, 50)],
        (broken, "torchao"): [ran(problem=error)],
        (broken, "llama-perf"): [ran(7)],
    }
    assert ratio(processes, row) == pytest.approx(2.5)
    assert ratio(processes, broken) is None
    table = comparison_table(processes)
    assert "| fp6, compiled           | 20.00" in table
    assert "| 2.50, 2.50" in table
    assert "- sparse-marlin, compiled, torchao: `NotImplementedError: no such" in table
    assert "goes on" not in table


def test_larger_caches_stand_beside_the_small_one_of_their_own_side() -> None:
    rates = {"torchao": (50, 36, 19), SIDES[1]: (80, 80, 76)}
    processes = {
        (row, side): [ran(rate)]
        for side in SIDES
        for row, rate in zip((SMALL_CACHE, *LARGE_CACHES), rates[side], strict=True)
    }
    (table,) = cache_table(processes)
    assert "| none, eager, 200 tokens, cache 2048          | 0.72      | 1.00" in table
    assert "| none, eager, 200 tokens, cache 2048, int8 KV | 0.38      | 0.95" in table
    del processes[SMALL_CACHE, SIDES[0]]
    assert cache_table(processes) == []


def test_both_sides_get_the_flags_of_the_cache() -> None:
    for side in SIDES:
        words = command(side, LARGE_CACHES[1], Path("model.pth"), Path("python"))
        assert words[words.index("--cache_size") + 1] == "2048"
        assert "--kv_cache_quantization" in words

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
    command,
    make_checkpoint,
    read_samples,
    row_of,
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


def ran(*tok_s: float) -> Ran:
    return Ran(
        rates=tuple(
            Rates(tok_s=rate, decode_tok_s=2 * rate, first_token_ms=10.0)
            for rate in tok_s
        )
    )


def test_both_sides_samples_are_read_alike() -> None:
    first, _ = read_samples("torchao", TORCHAO, 20)
    assert (first,) == read_samples("llama-perf", OURS, 20)
    assert first.tok_s == pytest.approx(40)
    assert first.decode_tok_s == pytest.approx(19 / 0.4)
    assert first.first_token_ms == pytest.approx(100)


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

    row = row_of(compile=False, max_new_tokens=3, num_samples=2)
    assert main(command("llama-perf", row, weights, Path("unused"))[3:]) == 0
    output = capsys.readouterr().out
    samples = read_samples("llama-perf", output, row.max_new_tokens)
    assert len(samples) == 2
    assert all(sample.decode_tok_s > 0 for sample in samples)
    assert text_of(output).startswith(PROMPT)


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
    row = row_of(num_samples=3, max_new_tokens=20)
    failed = run("torchao", [sys.executable, "-c", code], row, tmp_path, HANG_S)
    assert failed.problem == problem
    assert failed.rates == ()


def test_the_table_has_medians_ratios_and_reasons() -> None:
    row, broken = row_of(quantization="fp6"), row_of(quantization="sparse-marlin")
    error = "NotImplementedError: no such kernel. It goes on for a page."
    processes = {
        (row, "torchao"): [ran(10, 20, 30), ran(20, 20, 20)],
        (row, "llama-perf"): [ran(30, 50, 70), ran(50, 50, 50)],
        (broken, "torchao"): [Ran(problem=error)],
        (broken, "llama-perf"): [ran(7)],
    }
    assert ratio(*(processes[row, side] for side in SIDES)) == pytest.approx(2.5)
    assert ratio(*(processes[broken, side] for side in SIDES)) is None
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

"""What `llama-perf generate` shows, and what it refuses rather than ignores."""

from pathlib import Path

import pytest

from llama_perf.measure import prefill_progress
from tests.correctness.support.command_line import TINY, CommandLine
from tests.correctness.support.plugin_project import write_tiny


def test_one_new_token_has_no_decode_speed(cli: CommandLine) -> None:
    output, _ = cli(*TINY, "--max_new_tokens", "1")
    assert "\nAverage decode tokens/sec: -\n" in output
    assert "0.00 tokens/sec" not in output


def test_a_mask_that_is_not_used_is_said(cli: CommandLine) -> None:
    said = "(linear_causal_mask: without --attention sdpa there is no mask)"
    assert said in cli(*TINY, "--linear_causal_mask")[0]
    output, _ = cli(*TINY, "--linear_causal_mask", "--attention", "sdpa")
    assert said not in output


def test_a_long_prompt_shows_how_far_it_is(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefill_progress, "INTERVAL_S", 0)
    words = ("--prefill_size", "90", "--prefill_chunk", "40", "--fill", "50")
    output, steps = cli(*TINY, *words)
    # Of the samples' prompts nothing is told: a chunk is not waited for.
    assert steps.splitlines() == [
        "filling 50 positions",
        "filling: 40 of 50 positions",
        "warming up",
        "warming up: 40 of 90 prompt tokens",
        "warming up: 80 of 90 prompt tokens",
        "sample 1 of 1",
    ]
    assert "prompt tokens" not in output


def test_the_kernels_of_a_saved_model_are_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "tiny")
    asked = ("--checkpoint_path", "tiny", "-q", "int8wo", "--kernels", "torchao")
    cli(*TINY, *asked, "--save")
    saved = ("--checkpoint_path", "tiny-int8wo-torchao", "--kernels", "native")
    message = cli.refusal(*TINY, *saved)
    assert message == (
        "kernels: 'native' is not allowed; tiny-int8wo-torchao was saved for torchao"
    )

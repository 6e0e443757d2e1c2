"""docs/comparing.md shows what `llama-perf diff` prints of these made-up files."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llama_perf.results.baselines import Baseline, baseline_row
from llama_perf.results.measurement import Measurement, StepWork
from llama_perf.rows.spec import RowSpec
from llama_perf.strict_json import to_json
from scripts import ROOT
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.record_samples import ENVIRONMENT, figures_of

CARD = replace(ENVIRONMENT, device_key="made-up-card", device_uuid="1", driver="580")
PROCESSES = (0.995, 1.0, 1.004, 0.998, 1.003)
# tok/s and the model's bytes.
SCHEMES = {None: (410, 2.47e9), "int8wo": (640, 1.5e9), "int4wo-64": (820, 0.9e9)}


def measurement(row: RowSpec, tok_s: float, size: float, calls: int) -> Measurement:
    return figures_of(
        row,
        tok_s=tok_s,
        decode_tok_s=1.04 * tok_s,
        model_size_bytes=int(size),
        peak_memory_bytes=int(1.1 * size),
        peak_allocated_bytes=int(1.05 * size),
        step=StepWork(calls=calls, ms=1.0, operators=()),
    )


def made_up(
    month: int,
    torch: str,
    commit: str,
    factors: tuple[float, ...],
    calls: tuple[int, ...] = (164, 164, 164),
) -> Baseline:
    rows = []
    sides = zip(SCHEMES.items(), factors, calls, strict=True)
    for (scheme, (tok_s, size)), factor, count in sides:
        row = RowSpec(model="Llama-3.2-1B", quantization=scheme, compile=True)
        speeds = (tok_s * factor * process for process in PROCESSES)
        processes = (measurement(row, speed, size, count) for speed in speeds)
        rows.append(baseline_row(row, *processes))
    return Baseline(
        recorded=f"2026-{month:02}-02T03:04:05+00:00",
        note="made up",
        environment=replace(CARD, torch=torch, commit=commit),
        rows=tuple(rows),
    )


FILES = {
    "old.json": made_up(1, "2.13.0", "0123456789ab", (1, 1, 1)),
    "new.json": made_up(
        2, "2.14.0", "123456789abc", (1.004, 0.997, 0.955), (164, 180, 164)
    ),
    "newest.json": made_up(3, "2.14.1", "23456789abcd", (1.01, 0.999, 0.999)),
}
BLOCKS = re.findall(
    r"^\$ llama-perf (diff old\.json .+)\n((?:.*\n)+?)^```$",
    (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


@pytest.mark.parametrize(("command", "shown"), BLOCKS)
def test_the_page_shows_what_is_printed(
    cli: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    shown: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, baseline in FILES.items():
        Path(name).write_text(to_json(baseline), encoding="utf-8")
    output, _ = cli(*command.replace("'", "").split(), code=None)
    assert output == shown


def test_the_page_has_both() -> None:
    assert len(BLOCKS) == 2

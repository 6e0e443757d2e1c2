"""A card that torch does not see: each cause has its line, none passes for a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llama_perf.cli import main
from llama_perf.environment import check_device
from llama_perf.errors import NotRunnable
from llama_perf.missing_card import check_no_card_is_missed, listed_card, missing_card

LISTED = "NVIDIA H100 80GB HBM3, 535.104.05"


@pytest.fixture(autouse=True)
def _unseen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    listed_card.cache_clear()
    yield
    listed_card.cache_clear()


def put_nvidia_smi(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, *, code: int = 0
) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_nvidia_smi(tmp_path, monkeypatch, LISTED)


@pytest.mark.usefixtures("listed")
def test_a_driver_older_than_torchs_cuda_is_told_with_both_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(NotRunnable) as caught:
        check_device("cuda")
    told = str(caught.value)
    assert "lists NVIDIA H100 80GB HBM3 with driver 535.104.05, and torch" in told
    assert "is built for CUDA 13.0, which needs a newer driver; `make bench TOR" in told
    assert "\n" not in told


@pytest.mark.usefixtures("listed")
def test_a_cpu_build_beside_a_card_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is a CPU build; `make bench TORCH=...`" in missing_card()


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize("built", ["13.0", None])
@pytest.mark.parametrize("command", ["run", "rows"])
def test_a_run_whose_rows_nobody_chose_does_not_become_the_cpus(
    built: str | None,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built)
    with pytest.raises(NotRunnable, match="--set cpu runs the rows of a CPU"):
        check_no_card_is_missed()
    if command == "run":
        assert main(["run"]) == 2
        told = capsys.readouterr().err
        assert told.startswith("llama-perf: error: no CUDA device for torch: nvidia-")
        assert told.count("\n") == 1
    else:
        assert main(["rows", "--set", "cpu"]) == 0


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize("hidden", ["", "-1", "7"])
def test_a_card_that_the_user_hides_is_not_missed(
    hidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    check_no_card_is_missed()
    assert f"CUDA_VISIBLE_DEVICES is {hidden!r}, and torch sees none" in missing_card()


@pytest.mark.parametrize("text", ["", "No devices were found"])
def test_a_driver_without_a_card_changes_nothing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(tmp_path, monkeypatch, text, code=9 if text else 0)
    assert missing_card().startswith("no CUDA device on this machine")
    check_no_card_is_missed()

"""A row in a process of its own: what comes back, and what a broken process costs."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_perf import worker
from llama_perf.errors import RecordError
from llama_perf.records import Status
from llama_perf.run_options import RunOptions, Slowdown
from llama_perf.spec import RowSpec

ROW = RowSpec(
    model="stories15M",
    dtype="float32",
    device="cpu",
    max_new_tokens=2,
    num_samples=2,
)


def run(**options: object) -> worker.WorkerResult:
    return worker.run_in_process(ROW, options=RunOptions(**options), devices=["cpu"])


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have a worker run other Python code; `task` and `result` are its files."""

    def replace_code(code: str) -> None:
        head = "import os, sys; task, result = sys.argv[1:]\n"
        monkeypatch.setattr(
            worker,
            "worker_command",
            lambda task, result: [
                sys.executable,
                "-c",
                head + code,
                str(task),
                str(result),
            ],
        )

    return replace_code


def test_a_row_is_measured_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    # The working directory's modules are not in the way.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch.py").write_text("raise ImportError", encoding="utf-8")
    slowed = Slowdown(glob="stories*", share=0.5)
    found = run(slowdowns=(slowed,))
    assert found.result.row == ROW
    measurement = found.result.measurement
    assert measurement is not None, found.result.reason
    assert len(measurement.sample_ns) == 2
    assert measurement.injected_slowdown == 0.5
    assert found.environment is not None
    assert found.environment.device_key.startswith("cpu-")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            "print('one', flush=True); print('two', file=sys.stderr); sys.exit(7)",
            "its process ended with code 7: one | two",
        ),
        (
            "os.kill(os.getpid(), 9)",
            "its process was ended by signal 9: it said nothing",
        ),
        (
            "[print(n, flush=True) for n in range(9)]; os.abort()",
            "its process was ended by signal 6: 4 | 5 | 6 | 7 | 8",
        ),
        ("", "its process ended with code 0: it said nothing"),
    ],
)
def test_a_process_that_breaks_is_an_invalid_row(
    instead: Callable[[str], None], code: str, told: str
) -> None:
    instead(code)
    found = run()
    assert found.environment is None
    assert found.result.status is Status.INVALID
    assert found.result.id == ROW.id
    assert found.result.reason == told


def test_a_damaged_result_names_its_row(instead: Callable[[str], None]) -> None:
    instead("open(result, 'w').write('{')")
    with pytest.raises(RecordError, match=f"the process of {ROW.id}: Invalid JSON"):
        run()


def test_an_interrupt_ends_the_process_too(
    instead: Callable[[str], None], tmp_path: Path
) -> None:
    started = tmp_path / "pid"
    instead(
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"open({str(started)!r} + '_', 'w').write(str(os.getpid()))\n"
        f"os.rename({str(started)!r} + '_', {str(started)!r})\n"
        "time.sleep(600)"
    )

    def interrupt() -> None:
        while not started.exists():
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run()
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text(encoding="utf-8")), 0)


def test_a_worker_is_told_the_devices_of_the_whole_run(
    instead: Callable[[str], None],
) -> None:
    instead("import json; print(json.load(open(task))['devices']); sys.exit(1)")
    found = worker.run_in_process(ROW, options=RunOptions(), devices=["cuda", "cpu"])
    assert str(found.result.reason).endswith(": ['cpu', 'cuda']")

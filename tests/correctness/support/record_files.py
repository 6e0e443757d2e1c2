"""Valid files of records: a baseline, a run's results, a history, a save of pytest."""

from collections.abc import Callable
from pathlib import Path

from llama_perf.results import history
from llama_perf.strict_json import to_json, to_line
from tests.correctness.support import record_samples


def text_file(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return make


def baseline_file(folder: Path) -> Path:
    fast, slow = record_samples.ALIKE[:2], (50.0, 51.0)
    rows = {record_samples.CPU_ROW: fast, record_samples.OTHER: slow}
    baseline = record_samples.baseline_of_processes(rows)
    return record_samples.stored_in(folder, baseline)


def pytest_save(folder: Path) -> Path:
    section = baseline_file(folder).read_text(encoding="utf-8")
    text = f'{{"benchmarks": [], "llama_perf": {section}}}'
    return text_file("save.json", text)(folder)


def results_file(folder: Path) -> Path:
    measured = record_samples.measured()
    result = record_samples.compare(
        measured, record_samples.baseline_of(record_samples.measured())
    )
    report = record_samples.report_of(measured, comparisons=(result,))
    return text_file("results.json", to_json(report))(folder)


def history_file(folder: Path) -> Path:
    (line,) = history.lines_of(record_samples.report_of(record_samples.measured()))
    return text_file("device.jsonl", to_line(line))(folder)

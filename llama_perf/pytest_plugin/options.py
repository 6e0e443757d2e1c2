"""The shared options as pytest takes them, what is refused, the baseline named."""

import json
from pathlib import Path
from typing import Any

import pytest

from llama_perf.errors import RecordError, SpecError, UserError
from llama_perf.files import check_writable_anew
from llama_perf.results import baselines
from llama_perf.results.baselines import Baseline
from llama_perf.results.run import Report
from llama_perf.run.options import OPTIONS, RunRequest, dest, read_request
from llama_perf.strict_json import from_plain, to_json

SECTION = "llama_perf"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register every shared option under its own name, in a group of their own."""
    group = parser.getgroup("llama-perf", "llama-perf: rows, baselines, reports")
    for name, option in OPTIONS.items():
        group.addoption(name, dest=_dest(name), **option)


def _dest(name: str) -> str:
    return f"llama_perf_{dest(name)}"


def read_options(config: pytest.Config) -> RunRequest:
    """Read the options, paths as absolute ones; raises UserError for a wrong one.

    `--benchmark-compare`, with or without a value, asks for a comparison as `--compare`
    does. Results are kept in the rootdir unless they are sent elsewhere. A UserError is
    also raised for what would pass in silence or lose results.
    """

    def value(name: str) -> Any:
        value = config.getoption(_dest(name))
        if name == "--compare":
            return value or bool(config.getoption("benchmark_compare", None))
        return value

    request = read_request(
        value,
        folder=config.invocation_params.dir,
        root=config.rootpath,
        default_results=config.rootpath / ".llama-perf" / "last.json",
    )
    if request.compare:
        _check_compare(config)
    if request.results is None:
        raise SpecError("results", "-", "under pytest, give a file")
    json_path = config.getoption("benchmark_json", None)
    if json_path and not Path(json_path).absolute().parent.is_dir():
        raise SpecError(
            "benchmark-json",
            str(json_path),
            "its folder does not exist, and pytest-benchmark would fail only after the"
            " run",
        )
    request.check_outputs(check_writable_anew)
    # pytest-benchmark would look for its storage in the current directory, find
    # nothing there and pass.
    storage, prefix = config.getoption("benchmark_storage", None), "file://"
    if isinstance(storage, str) and storage.startswith(prefix):
        folder = config.rootpath / storage.removeprefix(prefix)
        config.option.benchmark_storage = f"{prefix}{folder}"
    return request


def _check_compare(config: pytest.Config) -> None:
    def asked(name: str) -> Any:
        return config.getoption(name, None)

    named = asked("benchmark_compare")
    if isinstance(named, str):
        path = config.invocation_params.dir / named.split("::")[0]
        if path.is_dir() or path.suffix == ".py":
            raise UserError(
                f"--benchmark-compare took {named!r} as its value; put paths first:"
                f" pytest {named} --benchmark-compare"
            )
    if asked("numprocesses") or hasattr(config, "workerinput"):
        raise UserError(
            "rows cannot be compared under xdist: pytest-benchmark measures nothing"
            " there and passes; leave out -n"
        )
    for flag in ("--benchmark-disable", "--benchmark-skip"):
        if asked(flag):
            raise UserError(
                f"a comparison with {flag} would compare nothing and pass; leave one of"
                " them out"
            )
    if asked("benchmark_compare_fail") and not isinstance(named, str):
        raise UserError(
            "--benchmark-compare-fail knows only saved runs of pytest-benchmark; leave"
            " it out: a row that is slower than its baseline fails by itself"
        )


class NamedBaseline:
    """The saved run or baseline file that `--benchmark-compare=VALUE` names.

    Without a value the option means this device's baseline, which the run itself finds.
    pytest-benchmark loads its own saves; a baseline file is read here.
    `source_and_baseline` is None until it was read, or where none was named. Make it
    before pytest-benchmark loads what is to be compared; raises RecordError.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._value: str | bool | None = config.getoption("benchmark_compare", None)
        self._source: str | None = None
        self.source_and_baseline: tuple[str, Baseline] | None = None
        option = config.option
        if self._value is True:
            # pytest-benchmark would take the last run in its own storage, whatever
            # rows that had.
            option.benchmark_compare = None
        if not isinstance(self._value, str):
            return
        path = config.invocation_params.dir / self._value
        if not path.is_file():
            return
        self._source = str(path)
        if _is_saved_run(path):
            option.benchmark_compare = str(path)
        else:
            option.benchmark_compare = None
            self.source_and_baseline = str(path), baselines.read(path)

    def load(self, document: dict[str, Any]) -> None:
        """Take the baseline from a file of pytest-benchmark; raises RecordError."""
        section = document.get(SECTION)
        source = self._source or f"a saved run of {document.get('datetime')}"
        if section is None:
            raise RecordError(
                f"{source}: it holds no llama-perf records; save one with"
                " pytest tests/perf --benchmark-save=NAME"
            )
        baseline = from_plain(Baseline, section, source=source)
        self.source_and_baseline = source, baseline

    def check_loaded(self) -> None:
        """Refuse a value that named nothing: pytest-benchmark only warns about it."""
        if isinstance(self._value, str) and self.source_and_baseline is None:
            raise UserError(
                f"--benchmark-compare: {self._value!r} names no saved run that can be"
                f" read in {self._config.option.benchmark_storage}"
            )


def _is_saved_run(path: Path) -> bool:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(document, dict) and "benchmarks" in document


def saved_section(report: Report) -> dict[str, Any]:
    """What a save of pytest-benchmark gets, so that it can be a baseline later."""
    baseline = Baseline(
        recorded=report.started,
        environment=report.environment,
        rows=tuple(
            baselines.baseline_row(result.row, result.measurement)
            for result in report.results
            if result.measurement is not None
        ),
    )
    section: dict[str, Any] = json.loads(to_json(baseline))
    return section

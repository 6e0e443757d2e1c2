"""The shared options as pytest takes them, what is refused, the baseline named."""

import os
from pathlib import Path
from typing import Any

import pytest

from llama_perf.errors import RecordError, SpecError, UserError
from llama_perf.files import check_apart, check_writable, is_absent, read_bytes
from llama_perf.results import baselines, recording
from llama_perf.results.baselines import Baseline
from llama_perf.run.options import OPTIONS, RunRequest
from llama_perf.run.read_options import read_request
from llama_perf.strict_json import parse_json


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register every shared option under its own name, in a group of their own."""
    group = parser.getgroup("llama-perf", "llama-perf: rows, baselines, reports")
    for name, option in OPTIONS.items():
        group.addoption(name, **option | {"dest": f"llama_perf_{option['dest']}"})


def read_options(config: pytest.Config) -> RunRequest:
    """Read the options, paths as absolute ones; raises UserError for a wrong one.

    `--benchmark-compare`, with or without a value, asks for a comparison as `--compare`
    does. Results are kept in the rootdir unless they are sent elsewhere. A UserError is
    also raised for what would pass in silence or lose results.
    """
    values = {one["dest"]: config.getoption(name) for name, one in OPTIONS.items()}
    folder = config.invocation_params.dir
    named = config.getoption("benchmark_compare", None)
    values["compare"] |= bool(named)
    request = read_request(
        values,
        folder=folder,
        root=config.rootpath,
        default_results=config.rootpath / ".llama-perf" / "last.json",
        reads=[folder / named] if isinstance(named, str) else [],
    )
    if request.compare:
        _check_compare(config)
    if request.print_results:
        raise SpecError("results", "-", "under pytest, give a file")
    json_path = config.getoption("benchmark_json", None)
    if json_path:
        # pytest-benchmark would fail only after the run.
        check_writable("benchmark-json", Path(json_path))
        outputs = (request.results, request.markdown, *request.report)
        own = (("a file of llama-perf's", path) for path in outputs if path)
        check_apart([("benchmark-json", Path(json_path))], own)
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
        if os.path.isdir(path) or path.suffix == ".py":
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


def named_baseline(config: pytest.Config) -> tuple[str, Baseline] | None:
    """The baseline file that `--benchmark-compare=VALUE` names, and its path.

    None where pytest-benchmark is to load a save of its own, which `loaded_baseline`
    reads. Without a value the option means this device's baseline, which the run itself
    finds. Call it before pytest-benchmark loads anything; raises RecordError.
    """
    named = config.getoption("benchmark_compare", None)
    # Without a value pytest-benchmark would take the last run in its own storage, which
    # may have had other rows.
    config.option.benchmark_compare = None
    if not isinstance(named, str):
        return None
    path = config.invocation_params.dir / named
    # It looks for a name in its storage, or for one in a folder of it.
    is_name = is_absent(path) and len(Path(named).parts) <= 2
    if is_name or _is_saved_run(path):
        config.option.benchmark_compare = named if is_name else str(path)
        return None
    return str(path), baselines.read(path)


def _is_saved_run(path: Path) -> bool:
    text = read_bytes(path, error=RecordError)
    try:
        document = parse_json(text, source=str(path))
    except RecordError:
        return False
    return isinstance(document, dict) and "benchmarks" in document


def loaded_baseline(
    config: pytest.Config, document: dict[str, Any]
) -> tuple[str, Baseline]:
    """The baseline in a file that pytest-benchmark loaded; raises RecordError."""
    source = str(config.option.benchmark_compare)
    if not Path(source).is_file():
        source = f"a saved run of {document.get('datetime')}"
    return source, recording.of_save(document, source=source)

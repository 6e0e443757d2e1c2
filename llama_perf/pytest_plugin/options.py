"""The shared options as pytest takes them, and the combinations that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama_perf.errors import SpecError, UserError
from llama_perf.files import check_writable_anew
from llama_perf.run.options import OPTIONS, dest, read_request
from llama_perf.run.request import RunRequest


def add_options(parser: pytest.Parser) -> None:
    """Register every shared option under its own name."""
    group = parser.getgroup("llama-perf", "llama-perf: rows, baselines, reports")
    for name, option in OPTIONS.items():
        group.addoption(name, dest=_dest(name), **option.keywords)


def _dest(name: str) -> str:
    return f"llama_perf_{dest(name)}"


def read_options(config: pytest.Config) -> RunRequest:
    """Read the options, paths as absolute ones; raises UserError for a wrong one.

    `--benchmark-compare`, with or without a value, asks for a comparison as `--compare`
    does. Results are kept in the rootdir unless they are sent elsewhere.
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
    _check(config, request)
    return request


def _check(config: pytest.Config, request: RunRequest) -> None:
    """Raise UserError for what would pass in silence or lose results.

    Also binds pytest-benchmark's storage to the rootdir: it would look for it in the
    current directory, find nothing there and pass.
    """
    if request.compare.asked:
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
    check_writable_anew("results", request.results)
    request.check_reports()
    storage = config.getoption("benchmark_storage", None)
    prefix = "file://"
    if isinstance(storage, str) and storage.startswith(prefix):
        folder = config.rootpath / storage.removeprefix(prefix)
        config.option.benchmark_storage = f"{prefix}{folder}"


def _check_compare(config: pytest.Config) -> None:
    named = config.getoption("benchmark_compare", None)
    if isinstance(named, str):
        path = config.invocation_params.dir / named.split("::")[0]
        if path.is_dir() or path.suffix == ".py":
            raise UserError(
                f"--benchmark-compare took {named!r} as its value; put paths first:"
                f" pytest {named} --benchmark-compare"
            )
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        raise UserError(
            "rows cannot be compared under xdist: pytest-benchmark measures nothing"
            " there and passes; leave out -n"
        )
    for name in ("benchmark_disable", "benchmark_skip"):
        if config.getoption(name, False):
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"a comparison with {flag} would compare nothing and pass; leave one of"
                " them out"
            )
    if config.getoption("benchmark_compare_fail", None) and not isinstance(named, str):
        raise UserError(
            "--benchmark-compare-fail knows only saved runs of pytest-benchmark; leave"
            " it out: a row that is slower than its baseline fails by itself"
        )

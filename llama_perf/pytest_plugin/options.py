"""The plugin's options as one frozen config, and the combinations it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from llama_perf.errors import SpecError, UserError
from llama_perf.files import check_writable_anew
from llama_perf.run.options import INJECT_DAMAGE, OPTIONS, RunOptions, Slowdown

ON_MISSING = ON_UNDECIDED = ("fail", "report")


@dataclass(frozen=True, kw_only=True, slots=True)
class PluginConfig:
    """What the command line asked for; paths are absolute."""

    rows_file: Path | None
    set_name: str | None
    globs: tuple[str, ...]
    run: RunOptions
    on_missing_baseline: str
    on_undecided: str
    confirm: bool
    results: Path
    markdown: Path | None
    baselines: Path

    @property
    def names_rows(self) -> bool:
        """Whether the command line says which rows."""
        return bool(self.set_name or self.rows_file or self.globs)

    @classmethod
    def read(cls, config: pytest.Config) -> PluginConfig:
        """Read the options; raises SpecError for one that is wrong."""

        def path(name: str) -> Path | None:
            value = config.getoption(name)
            return None if value is None else config.invocation_params.dir / value

        results = path("llama_perf_results")
        if results is None:
            results = config.rootpath / ".llama-perf" / "last.json"
        return cls(
            rows_file=path("llama_perf_rows"),
            set_name=config.getoption("llama_perf_set"),
            globs=tuple(config.getoption("llama_perf_row")),
            run=RunOptions(
                checkpoints=path("llama_perf_checkpoints"),
                slowdowns=tuple(
                    Slowdown.parse(text)
                    for text in config.getoption("llama_perf_slowdown")
                ),
                damages=tuple(config.getoption("llama_perf_damage")),
                isolate=config.getoption("llama_perf_isolate"),
                row_timeout_s=config.getoption("llama_perf_row_timeout"),
                time_budget_s=config.getoption("llama_perf_time_budget"),
                resume=results if config.getoption("llama_perf_resume") else None,
                wait=config.getoption("llama_perf_wait"),
            ),
            on_missing_baseline=config.getoption("llama_perf_on_missing"),
            on_undecided=config.getoption("llama_perf_on_undecided"),
            confirm=config.getoption("llama_perf_confirm"),
            results=results,
            markdown=path("llama_perf_markdown"),
            baselines=path("llama_perf_baselines") or config.rootpath / "baselines",
        )


def add_options(parser: pytest.Parser) -> None:
    """Register every option of the plugin."""
    group = parser.getgroup("llama-perf", "llama-perf: rows, baselines, reports")
    group.addoption(
        "--set",
        dest="llama_perf_set",
        metavar="NAME",
        help="a set of rows of the package (default: cuda with a CUDA card, else cpu)",
    )
    group.addoption(
        "--rows",
        dest="llama_perf_rows",
        metavar="FILE",
        help="a TOML file of rows of your own, instead of a set",
    )
    group.addoption(
        "--row",
        dest="llama_perf_row",
        metavar="GLOB",
        action="append",
        default=[],
        help="only rows whose id matches (repeatable)",
    )
    group.addoption(
        "--checkpoints",
        dest="llama_perf_checkpoints",
        metavar="DIR",
        help="where a row's model is looked for by its name; synthetic weights of the"
        " same shape stand in for one that is not there",
    )
    group.addoption(
        "--baselines",
        dest="llama_perf_baselines",
        metavar="DIR",
        help="the folder of baselines (default: baselines/ of the rootdir)",
    )
    group.addoption(
        "--on-missing-baseline",
        dest="llama_perf_on_missing",
        choices=ON_MISSING,
        default="fail",
        help="with --benchmark-compare, whether a row without a baseline fails"
        " (default) or is only reported",
    )
    group.addoption(
        "--no-confirm",
        dest="llama_perf_confirm",
        action="store_false",
        default=True,
        help="with --benchmark-compare, run no fresh processes: a row that looks slower"
        " or larger is UNDECIDED",
    )
    group.addoption(
        "--on-undecided",
        dest="llama_perf_on_undecided",
        choices=ON_UNDECIDED,
        default="fail",
        help="with --benchmark-compare, whether an UNDECIDED row fails (default) or is"
        " only reported",
    )
    group.addoption(
        "--results",
        dest="llama_perf_results",
        metavar="FILE",
        help="where results are kept after each row (default: .llama-perf/last.json of"
        " the rootdir)",
    )
    group.addoption(
        "--markdown",
        dest="llama_perf_markdown",
        metavar="FILE",
        help="write the table as markdown as well",
    )
    for option, told in OPTIONS.items():
        name = option.removeprefix("--").replace("-", "_")
        group.addoption(option, dest=f"llama_perf_{name}", **told)
    group.addoption(
        "--resume",
        dest="llama_perf_resume",
        action="store_true",
        default=False,
        help="continue the run whose results are kept: rows it measured are taken over",
    )
    group.addoption(
        "--inject-slowdown",
        dest="llama_perf_slowdown",
        metavar="GLOB=PERCENT",
        action="append",
        default=[],
        help="development switch: repeat that share of the decoding steps of matching"
        " rows, to see the gate fail (repeatable)",
    )
    group.addoption("--inject-damage", dest="llama_perf_damage", **INJECT_DAMAGE)


def check_options(config: pytest.Config, options: PluginConfig) -> None:
    """Raise UserError for what would pass in silence or lose results.

    Also binds pytest-benchmark's storage to the rootdir: it would resolve it against
    the current directory, find nothing there and pass.
    """
    compare = config.getoption("benchmark_compare", None)
    if compare:
        _check_compare(config, compare)
    json_path = config.getoption("benchmark_json", None)
    if json_path and not Path(json_path).absolute().parent.is_dir():
        raise SpecError(
            "benchmark-json",
            str(json_path),
            "its folder does not exist, and pytest-benchmark would find out after"
            " the run",
        )
    check_writable_anew("results", options.results)
    if options.markdown is not None:
        check_writable_anew("markdown", options.markdown)
    checkpoints = options.run.checkpoints
    if checkpoints is not None and not checkpoints.is_dir():
        raise SpecError("checkpoints", str(checkpoints), "no such folder")
    storage = config.getoption("benchmark_storage", None)
    prefix = "file://"
    if isinstance(storage, str) and storage.startswith(prefix):
        folder = config.rootpath / storage.removeprefix(prefix)
        config.option.benchmark_storage = f"{prefix}{folder}"


def _check_compare(config: pytest.Config, compare: str | bool) -> None:
    if isinstance(compare, str):
        taken = config.invocation_params.dir / compare.split("::")[0]
        if taken.is_dir() or taken.suffix == ".py":
            raise UserError(
                f"--benchmark-compare took {compare!r} as its value; put paths first:"
                f" pytest {compare} --benchmark-compare"
            )
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        raise UserError(
            "--benchmark-compare cannot run under xdist: pytest-benchmark measures"
            " nothing there and passes; leave out -n"
        )
    for name in ("benchmark_disable", "benchmark_skip"):
        if config.getoption(name, False):
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"--benchmark-compare with {flag} would compare nothing and pass;"
                " leave one of them out"
            )

"""A baseline that is there and cannot be read, or was edited, ends every command."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_perf.cli.doctor import NAME_WIDTH
from llama_perf.errors import UserError
from llama_perf.results import baselines
from llama_perf.rows.limit_overrides import project_limits
from llama_perf.strict_json import to_json
from tests.correctness.support.plugin_project import PLAIN, Project
from tests.correctness.support.record_samples import edited

pytest_plugins = ["pytester"]


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path)


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "none")


def device_folder(put: Callable[[Path], Any]) -> Callable[[Path], None]:
    def put_there(path: Path) -> None:
        path.parent.rmdir()
        put(path.parent)

    return put_there


UNREADABLE: list[tuple[Callable[[Path], Any], str]] = [
    (folder, "Is a directory"),
    (os.mkfifo, "it is a pipe"),
    (loop, "Too many levels of symbolic links"),
    (dangling, "No such file or directory"),
    (device_folder(loop), "Too many levels of symbolic links"),
    (device_folder(dangling), "No such file or directory"),
    (device_folder(os.mkfifo), "Not a directory"),
]


def emptied(project: Project) -> Path:
    """The path of this device's baseline, at which nothing is."""
    path = project.record()
    path.unlink()
    return path


def check_each_command(project: Project, path: Path, reason: str) -> None:
    report = "--on-missing-baseline=report"
    for option in ("--benchmark-compare", f"--benchmark-compare={path}"):
        message = f"ERROR: {path}: {reason}"
        if path.is_dir() and option.endswith(str(path)):
            message = f"ERROR: --benchmark-compare took '{path}' as its value"
        assert message in project.refusal(option, report)
    for words in (
        project.words("run", "--compare", report),
        project.words("baseline", "record"),
        ["baseline", "show", *project.baselines],
        ["baseline", "diff", *project.baselines],
    ):
        assert project.cli.refusal(*words).startswith(f"{path}: {reason}")
    out, _ = project.cli("baseline", "check", *project.baselines, code=1)
    assert f"\n  {path}: {reason}" in out
    out, _ = project.cli("doctor", *project.baselines)
    assert f"\n{'baseline':<{NAME_WIDTH}}error: {path}: {reason}" in out
    assert not project.results.exists()


@pytest.mark.parametrize(("put", "reason"), UNREADABLE)
def test_a_baseline_that_cannot_be_read(
    project: Project, put: Callable[[Path], Any], reason: str
) -> None:
    path = emptied(project)
    put(path)
    check_each_command(project, path, f"cannot be read: {reason}")
    # What is to be replaced is no file, which is told before a row runs.
    fresh = project.words("baseline", "record", "--fresh")
    assert project.cli.refusal(*fresh) == f"{path}: cannot be read: {reason}"


def test_a_baseline_without_permission(project: Project) -> None:
    path = project.record()
    original = os.open

    def forbidden(name: Any, *arguments: Any, **options: Any) -> int:
        if os.fspath(name) == str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return original(name, *arguments, **options)

    # Permissions do not stop root, as which tests may run.
    project.patch.setattr(os, "open", forbidden)
    check_each_command(project, path, "cannot be read: Permission denied")


def test_a_baseline_that_was_edited(project: Project) -> None:
    path = project.record()
    for edit, field in (
        ({"rows.0.row.max_new_tokens": 5}, f"rows.0.id: {PLAIN!r} is not"),
        ({"rows": []}, "rows: there is none; a baseline has at least one"),
    ):
        check_each_command(project, edited(path, edit), field)


def test_results_to_continue_that_were_edited(project: Project) -> None:
    project.run("--row=*none*", passed=1)
    edited(project.results, {"results.0.row.max_new_tokens": 5})
    message = f"{project.results}: results.0.id: {PLAIN!r} is not the id of its row"
    assert f"ERROR: {message}" in project.refusal("--resume", "--row=*none*")
    run = project.run_words("--resume", "--row", "*none*")
    assert project.cli.refusal(*run).startswith(message)


def test_the_published_table_that_cannot_be_read(project: Project) -> None:
    project.record()
    path = baselines.path_of(project.path / "baselines", baselines.REFERENCE_KEY)
    path.mkdir(parents=True)
    baselines.reference.cache_clear()
    reason = f"{path}: cannot be read: Is a directory"
    assert f"ERROR: {reason}" in project.refusal()
    assert project.cli.refusal(*project.words("run")) == reason


def test_limits_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    for put, reason in UNREADABLE[:4]:
        put(path)
        with pytest.raises(UserError, match=f"^{path}: cannot be read: {reason}$"):
            project_limits(path)
        path.rmdir() if put is folder else path.unlink()


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_a_named_folder_of_baselines_is_there(project: Project, kind: str) -> None:
    named = project.path / "baslines"
    reason = "No such file or directory"
    if kind == "a file":
        named.touch()
        reason = "Not a directory"
    message = f"baselines: '{named}' is not allowed; it cannot be listed: {reason}"
    options = ["--baselines", str(named)]
    compare = ["--compare", "--on-missing-baseline=report"]
    assert message in project.refusal(*options, *compare)
    run = ["run", *project.tiny_rows, *options, "--on-missing-baseline", "report"]
    for words in (
        [*run, "--compare"],
        *(["baseline", action, *options] for action in ("show", "diff", "check")),
    ):
        assert project.cli.refusal(*words) == message


def test_no_folder_of_baselines_is_no_baseline(project: Project) -> None:
    # Where none is named, and none is there yet.
    (project.path / "baselines").rmdir()
    result = project.run("--compare", "--on-missing-baseline=report")
    assert result.ret == pytest.ExitCode.OK


def test_a_baseline_in_the_folder_of_another_device(project: Project) -> None:
    path = project.record()
    moved = baselines.path_of(path.parents[1], "another")
    moved.parent.mkdir()
    path.rename(moved)
    # The file names the device that it belongs to.
    out, _ = project.cli("baseline", "check", *project.baselines, code=1)
    key = path.parent.name
    line = f"environment.device_key: {key!r} is not the folder's device, 'another'"
    assert f"another: 1 problem\n  {moved}: {line}" in out
    stored = baselines.read(moved)
    environment = replace(stored.environment, device_key="b")
    path.write_text(to_json(replace(stored, environment=environment)), "utf-8")
    message = f"{path}: environment.device_key: 'b' is not the folder's device"
    assert message in project.refusal("--compare", "--on-missing-baseline=report")

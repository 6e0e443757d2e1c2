from __future__ import annotations

import os
import platform
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from scripts.offline import wheelhouse, wheels
from scripts.offline.options import ROOT
from scripts.offline.steps import Status, StepRunner
from scripts.offline.wheelhouse import Target, gather, main, pins, required_by
from scripts.offline.wheels import (
    MissingWheelError,
    install_wheels,
    is_left_out,
    lacking,
    root_requirements,
)

TARGET = Target(python="3.12", machine="x86_64")


def write_wheel(
    folder: Path, name: str, number: str, *requires: str, tag: str = "py3-none-any"
) -> Path:
    path = folder / f"{name.replace('-', '_')}-{number}-{tag}.whl"
    info = f"{name.replace('-', '_')}-{number}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {number}"]
    lines += ["Provides-Extra: more", *(f"Requires-Dist: {line}" for line in requires)]
    with ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join([*lines, "", "About it."]))
        archive.writestr(
            f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Wheels of an application, of its libraries, and a newer libraries' wheel."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    write_wheel(
        folder,
        "app",
        "1.0",
        "lib-core==2.1",
        "old-backport; python_version < '3.9'",
        "windows-only; sys_platform == 'win32'",
        "extra-lib; extra == 'more'",
    )
    write_wheel(folder, "lib-core", "2.1", "typing-stuff>=4")
    write_wheel(folder, "lib-core", "1.9")
    write_wheel(folder, "typing-stuff", "4.2")
    write_wheel(folder, "extra-lib", "0.1")
    return folder


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip find packages installed that the test writes into `installed/`."""
    (tmp_path / "installed").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))


def installed(tmp_path: Path, name: str, number: str, *requires: str) -> None:
    with ZipFile(write_wheel(tmp_path, name, number, *requires)) as wheel:
        wheel.extractall(tmp_path / "installed")


def names(paths: list[Path]) -> list[str]:
    return [path.name.removesuffix("-py3-none-any.whl") for path in paths]


def test_a_bare_machine_takes_everything_that_is_needed(folder: Path) -> None:
    taken, problems = lacking(folder, ["app[more]"])
    libraries = ["extra_lib-0.1", "lib_core-2.1", "typing_stuff-4.2"]
    assert names(taken) == ["app-1.0", *libraries]
    assert problems == []


@pytest.mark.usefixtures("install")
def test_an_installed_version_stays_unless_it_is_too_old(
    folder: Path, tmp_path: Path
) -> None:
    installed(tmp_path, "lib-core", "2.1", "typing-stuff>=3")
    installed(tmp_path, "typing-stuff", "3.10")
    assert names(lacking(folder, ["app"])[0]) == ["app-1.0"]
    taken, _ = lacking(folder, ["app", "typing-stuff>=4"])
    assert names(taken) == ["app-1.0", "typing_stuff-4.2"]


@pytest.mark.usefixtures("install")
def test_the_requirements_of_the_machines_own_torch_are_not_looked_at(
    folder: Path, tmp_path: Path
) -> None:
    installed(tmp_path, "torch", "99.0", "absent-cuda-library")
    assert lacking(folder, ["torch>=2", "typing-stuff"])[1] == []
    taken, (problem,) = lacking(folder, ["torch>=100", "typing-stuff"])
    assert names(taken) == ["typing_stuff-4.2"]
    assert problem.startswith("torch>=100: Could not find a version that satisfies")


def test_a_package_that_nobody_has_is_reported_and_the_rest_is_taken(
    folder: Path,
) -> None:
    taken, problems = lacking(folder, ["absent>=3", "lib-core<2", "typing-stuff>=5"])
    assert names(taken) == ["lib_core-1.9"]
    assert [problem.split(": ")[0] for problem in problems] == [
        "absent>=3",
        "typing-stuff>=5",
    ]
    assert "(from versions: 4.2)" in problems[1]


def test_a_wheel_of_another_python_is_not_taken(tmp_path: Path) -> None:
    write_wheel(tmp_path, "both", "2.0", tag="cp38-cp38-win32")
    write_wheel(tmp_path, "both", "1.0")
    assert names(lacking(tmp_path, ["both"])[0]) == ["both-1.0"]
    assert len(lacking(tmp_path, ["both>=2"])[1]) == 1


@pytest.mark.usefixtures("install")
def test_a_check_installs_only_what_is_lacking(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "typing-stuff", "4.9")
    monkeypatch.setattr(wheels, "root_requirements", lambda: ["app", "absent"])
    runner = StepRunner(root=ROOT, out=tmp_path, budget_s=600)
    install_wheels(runner, folder, tmp_path / "site")
    statuses = {outcome.name: outcome.status for outcome in runner.outcomes}
    assert statuses == {"wheels": Status.OK, "requirements": Status.FAILED}
    metadata = sorted(path.name for path in (tmp_path / "site").glob("*.dist-info"))
    assert metadata == ["app-1.0.dist-info", "lib_core-2.1.dist-info"]


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        *((name, True) for name in ("torch>=2", "triton", "numpy", "nvidia-cublas")),
        *((name, True) for name in ("nvidia_nccl_cu13==2; x == 'y'", "cuda-x")),
        *((name, False) for name in ("torchao>=2", "tritonclient", "nvidia-ml-py")),
        *((name, False) for name in ("pytest", "tiktoken[more]>=1")),
    ],
)
def test_only_what_a_cuda_machine_has_is_left_out(name: str, left_out: bool) -> None:
    assert is_left_out(name) == left_out


def test_the_roots_are_the_dependencies_and_what_tests_import() -> None:
    roots = {Requirement(line).name for line in root_requirements()}
    assert {"torch", "torchao", "pytest", "pydantic", "hypothesis"} <= roots
    assert not {"mypy", "ruff"} & roots


def test_every_root_has_a_pin_that_satisfies_it() -> None:
    for wanted in map(Requirement, root_requirements()):
        number = pins()[wanted.name].partition("==")[2]
        assert wanted.specifier.contains(number), wanted
    assert "pydantic-core" in pins()


def test_pip_is_asked_for_the_target() -> None:
    options = Target(python="3.13", machine="aarch64").pip_options
    assert options[options.index("--python-version") + 1] == "3.13"
    platforms = [word for word in options if word.startswith("--platform=")]
    assert platforms
    assert all(word.endswith("_aarch64") for word in platforms)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of wheels: pip reaches it and nothing else."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(wheelhouse, "root_requirements", lambda: ["app>=1", "torch>=2"])
    return index


def test_wheels_are_gathered_for_the_target_without_torch(
    index: Path, tmp_path: Path
) -> None:
    here = platform.python_version()[:4]
    write_wheel(
        index,
        "app",
        "1.0",
        "compiled",
        "torch>=2",
        "numpy",
        "triton",
        "arm; platform_machine == 'aarch64'",
        f"there; python_version != '{here}'",
        "absent; sys_platform == 'win32'",
    )
    for tag in (
        "cp312-cp312-manylinux_2_28_x86_64",
        "cp313-cp313-manylinux2014_x86_64",
    ):
        write_wheel(index, "compiled", "1.0", tag=tag)
    # Needed only by another Python than the one that runs pip.
    write_wheel(index, "there", "1.0", "further")
    write_wheel(index, "further", "1.0")
    write_wheel(index, "arm", "1.0")
    other = Target(python="3.13" if here == "3.12" else "3.12", machine="x86_64")
    tag = "manylinux_2_28" if other.python == "3.12" else "manylinux2014"
    cpython = f"cp{other.python.replace('.', '')}"
    out = tmp_path / "out"
    out.mkdir()
    gathered = gather(other, out, weights=False)
    assert sorted(gathered) == sorted(out.iterdir())
    assert sorted(path.name for path in gathered) == [
        "app-1.0-py3-none-any.whl",
        f"compiled-1.0-{cpython}-{cpython}-{tag}_x86_64.whl",
        "further-1.0-py3-none-any.whl",
        "there-1.0-py3-none-any.whl",
    ]


def test_markers_are_those_of_the_target() -> None:
    arm = Requirement("arm; platform_machine == 'aarch64'")
    assert Target(python="3.12", machine="aarch64").needs(arm)
    assert not TARGET.needs(arm)
    assert not TARGET.needs(Requirement("more; extra == 'x'"))


def test_a_damaged_wheel_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut-1.0-py3-none-any.whl"
    path.write_bytes(b"PK")
    with pytest.raises(MissingWheelError, match=r"cut-1.0.*no readable wheel"):
        list(required_by([path]))
    taken, problems = lacking(tmp_path, ["cut"])
    assert taken == []
    assert len(problems) == 1


@pytest.mark.usefixtures("index")
def test_a_wheel_that_cannot_be_had_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "out")]) == 1
    error = capfd.readouterr().err
    assert error.startswith("wheelhouse: error: Could not find a version")
    assert "app>=1" in error
    assert error.count("\n") == 1

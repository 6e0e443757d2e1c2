import os
import platform
import re
import sys
from importlib.metadata import requires
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from llama_perf.errors import UserError
from scripts import ROOT
from scripts.offline import install, wheelhouse
from scripts.offline.install import is_left_out, lacking, root_requirements
from scripts.offline.steps import Status, StepRunner


def write_wheel(
    folder: Path, name: str, number: str, *requires: str, tag: str = "py3-none-any"
) -> Path:
    stem = f"{name.replace('-', '_')}-{number}"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {number}"]
    lines += ["Provides-Extra: more", *(f"Requires-Dist: {line}" for line in requires)]
    wheel = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"
    path = folder / f"{stem}-{tag}.whl"
    with ZipFile(path, "w") as archive:
        about = f"{stem}.dist-info"
        archive.writestr(f"{about}/METADATA", "\n".join([*lines, "", "About it."]))
        archive.writestr(f"{about}/WHEEL", wheel)
        archive.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Wheels of an application, of its libraries, and a newer libraries' wheel."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    others = ("old-backport; python_version < '3.9'", "absent; sys_platform == 'win32'")
    more = "extra-lib; extra == 'more'"
    write_wheel(folder, "app", "1.0", "lib-core==2.1", *others, more)
    write_wheel(folder, "lib-core", "2.1", "typing-stuff>=4")
    for name, number in (("lib-core", "1.9"), ("typing-stuff", "4.2")):
        write_wheel(folder, name, number)
    write_wheel(folder, "extra-lib", "0.1")
    write_wheel(folder, "alone", "1.0", "absent")
    write_wheel(folder, "other-system", "2.0", tag="cp38-cp38-win32")
    write_wheel(folder, "other-system", "1.0")
    (folder / "cut-1.0-py3-none-any.whl").write_bytes(b"PK")
    return folder


def install_here(folder: Path, *packages: str) -> None:
    """Let pip find `packages` installed: name, version, and what each requires."""
    for package in packages:
        with ZipFile(write_wheel(folder, *package.split())) as wheel:
            wheel.extractall(folder / "installed")


LIBRARIES = ("lib-core 2.1 typing-stuff>=3", "typing-stuff 3.10")
TORCH = ("torch 99.0 absent-cuda-library",)


@pytest.mark.parametrize(
    ("installed", "wanted", "taken", "problems"),
    [
        # A bare machine takes everything that is needed.
        ((), "app[more]", "app-1.0 extra_lib-0.1 lib_core-2.1 typing_stuff-4.2", []),
        # An installed version stays unless it is too old.
        (LIBRARIES, "app", "app-1.0", []),
        (LIBRARIES, "app typing-stuff>=4", "app-1.0 typing_stuff-4.2", []),
        # The requirements of the machine's own torch are not looked at, nor those of a
        # package that stands alone.
        (TORCH, "torch>=2 alone typing-stuff", "alone-1.0 typing_stuff-4.2", []),
        (
            TORCH,
            "torch>=100 typing-stuff",
            "typing_stuff-4.2",
            ["torch>=100: Could not find a version that satisfies"],
        ),
        # What nobody has is reported, and the rest is taken.
        (
            (),
            "absent>=3 lib-core<2 typing-stuff>=5",
            "lib_core-1.9",
            ["absent>=3: ", r"typing-stuff>=5: .*\(from versions: 4\.2\)"],
        ),
        # A wheel of another system is not taken, and no damaged one.
        ((), "other-system", "other_system-1.0", []),
        ((), "other-system>=2 cut", "", ["other-system>=2: ", "cut: "]),
    ],
)
def test_pip_says_what_is_lacking(
    installed: tuple[str, ...],
    wanted: str,
    taken: str,
    problems: list[str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    monkeypatch.setattr(install, "ALONE", "alone")
    install_here(tmp_path, *installed)
    wheels, reasons = lacking(folder, wanted.split())
    names = [path.name.removesuffix("-py3-none-any.whl") for path in wheels]
    assert names == taken.split()
    for problem, reason in zip(problems, reasons, strict=True):
        assert re.match(problem, reason)


def test_a_check_installs_only_what_is_lacking(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    install_here(tmp_path, "typing-stuff 4.9")
    monkeypatch.setattr(install, "root_requirements", lambda: ["app", "absent"])
    runner = StepRunner(tmp_path, budget_s=600)
    install.install_wheels(runner, folder, tmp_path / "site")
    statuses = {outcome.name: outcome.status for outcome in runner.outcomes}
    assert statuses == {"wheels": Status.OK, "requirements": Status.FAILED}
    metadata = sorted(path.name for path in (tmp_path / "site").glob("*.dist-info"))
    assert metadata == ["app-1.0.dist-info", "lib_core-2.1.dist-info"]


def test_only_what_a_cuda_machine_has_is_left_out() -> None:
    left_out = ["torch>=2", "triton", "numpy", "nvidia-cublas", "cuda-x"]
    left_out.append("nvidia_nccl_cu13==2; x == 'y'")
    others = ["torchao>=2", "tritonclient", "nvidia-ml-py", "pytest", "tiktoken[more]"]
    assert list(filter(is_left_out, [*others, *left_out])) == left_out


def test_everything_that_travels_has_a_pin_that_satisfies_it() -> None:
    machine = (f"3.{sys.version_info.minor}", platform.machine())
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pairs}
    names: set[str] = set()
    wanted = list(map(Requirement, root_requirements()))
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(pins[name]), requirement
        assert not requirement.extras, "they would have to be followed"
        if name not in names and name != install.ALONE and not is_left_out(name):
            more = wheelhouse.needed(requires(name) or [], *machine)
            wanted += map(Requirement, more)
        names.add(name)
    assert {"torch", "torchao", "pytest", "pydantic-core", "hypothesis"} <= names
    assert not {"mypy", "ruff"} & names


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of wheels: pip reaches it and nothing else."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(wheelhouse, "root_requirements", lambda: ["app>=1", "torch>=2"])
    monkeypatch.setattr(install, "ALONE", "alone")
    return index


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_wheels_are_gathered_for_the_target_without_torch(
    machine: str, index: Path, tmp_path: Path
) -> None:
    here = f"3.{sys.version_info.minor}"
    other = "3.13" if here == "3.12" else "3.12"
    requirements = ["compiled", "torch>=2", "numpy", "triton", "absent; extra == 'x'"]
    requirements.append("arm; platform_machine == 'aarch64'")
    requirements.append("absent; sys_platform == 'win32'")
    # Needed only by another Python than the one that runs pip.
    requirements.append(f"there; python_version != '{here}'")
    requirements.append("alone")
    write_wheel(index, "app", "1.0", *requirements)
    write_wheel(index, "alone", "1.0", "absent")
    write_wheel(index, "there", "1.0", "further")
    for name in ("further", "arm"):
        write_wheel(index, name, "1.0")
    tags = {"3.12": "cp312-cp312-manylinux_2_28", "3.13": "cp313-cp313-manylinux2014"}
    for tag in tags.values():
        for processor in ("x86_64", "aarch64"):
            write_wheel(index, "compiled", "1.0", tag=f"{tag}_{processor}")
    out = tmp_path / "out"
    out.mkdir()
    gathered = wheelhouse.gather(other, machine, out, weights=False)
    assert sorted(gathered) == sorted(out.iterdir())
    pure = ["alone", "app", "further", "there"]
    if machine == "aarch64":
        pure.append("arm")
    assert {path.name for path in gathered} == {
        f"compiled-1.0-{tags[other]}_{machine}.whl",
        *(f"{name}-1.0-py3-none-any.whl" for name in pure),
    }


def test_a_damaged_wheel_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"cut-1.0.*no readable wheel"):
        wheelhouse.required_by(folder / "cut-1.0-py3-none-any.whl")


@pytest.mark.usefixtures("index")
def test_a_wheel_that_cannot_be_had_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert wheelhouse.main(["--out", str(tmp_path / "out")]) == 1
    error = capfd.readouterr().err
    assert error.startswith("wheelhouse: error: Could not find a version")
    assert "app>=1" in error
    assert error.count("\n") == 1

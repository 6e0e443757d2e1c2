from __future__ import annotations

import os
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.tags import Tag

from scripts.offline import wheels
from scripts.offline.wheelhouse import Target, download, main, pinned, pip_command
from scripts.offline.wheels import MissingWheel, Wheel

ROOT = Path(__file__).resolve().parents[3]


def write_wheel(
    folder: Path, name: str, number: str, *requires: str, tag: str = "py3-none-any"
) -> Path:
    path = folder / f"{name.replace('-', '_')}-{number}-{tag}.whl"
    info = f"{name.replace('-', '_')}-{number}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {number}"]
    lines += [f"Requires-Dist: {each}" for each in requires]
    with ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join([*lines, "", "About it."]))
        archive.writestr(
            f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Wheels of an application, its libraries, and what a machine has already."""
    write_wheel(
        tmp_path,
        "app",
        "1.0",
        "lib-core==2.1",
        "torch>=2",
        "old-backport; python_version < '3.9'",
        "windows-only; sys_platform == 'win32'",
        "extra-lib; extra == 'more'",
    )
    write_wheel(tmp_path, "lib-core", "2.1", "typing-stuff>=4")
    write_wheel(tmp_path, "lib-core", "1.9")
    write_wheel(tmp_path, "typing-stuff", "4.2")
    write_wheel(tmp_path, "extra-lib", "0.1")
    return tmp_path


def walked(
    folder: Path, *roots: str, installed: dict[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """Names taken and reasons told, on a machine that has `installed`."""
    known = {"torch": "2.11", **(installed or {})}

    def is_there(wanted: Requirement) -> bool:
        number = known.get(wheels.name_of(wanted))
        return number is not None and wanted.specifier.contains(number)

    found = list(
        wheels.walk(
            map(Requirement, roots),
            is_there=is_there,
            find=wheels.find_in(folder, tags=[Tag("py3", "none", "any")]),
        )
    )
    return (
        [f"{each.name}-{each.version}" for each in found if isinstance(each, Wheel)],
        [str(each) for each in found if isinstance(each, MissingWheel)],
    )


def test_a_bare_machine_takes_all_that_is_needed(folder: Path) -> None:
    taken, told = walked(folder, "app")
    assert taken == ["app-1.0", "lib-core-2.1", "typing-stuff-4.2"]
    assert told == []


def test_what_is_installed_is_left_and_not_looked_into(folder: Path) -> None:
    assert walked(folder, "app", installed={"app": "3"}) == ([], [])
    taken, _ = walked(folder, "app", installed={"typing-stuff": "4.9"})
    assert taken == ["app-1.0", "lib-core-2.1"]


def test_an_installed_version_that_is_too_old_is_replaced(folder: Path) -> None:
    installed = {"lib-core": "2.1", "typing-stuff": "3.10"}
    taken, _ = walked(folder, "app", "typing-stuff>=4", installed=installed)
    assert taken == ["app-1.0", "typing-stuff-4.2"]


def test_an_extra_brings_its_requirements(folder: Path) -> None:
    taken, _ = walked(folder, "app[more]")
    assert "extra-lib-0.1" in taken


def test_what_nobody_has_is_told_and_the_rest_is_taken(folder: Path) -> None:
    taken, told = walked(folder, "absent>=3", "lib-core<2", "lib-core>=2")
    assert taken == ["lib-core-1.9"]
    assert told == [
        f"absent>=3: neither installed nor in {folder}",
        "lib-core>=2: lib_core-1.9-py3-none-any.whl does not satisfy it",
    ]


def test_markers_are_those_of_the_target(folder: Path) -> None:
    target = Target(python="3.8", machine="aarch64")
    write_wheel(folder, "old-backport", "1.0")
    write_wheel(folder, "arm", "1.0")
    roots = [
        Requirement("app"),
        Requirement("arm; platform_machine == 'aarch64'"),
        Requirement("intel; platform_machine == 'x86_64'"),
    ]
    found = wheels.walk(
        roots,
        is_there=wheels.is_left_out,
        find=wheels.find_in(folder),
        environment=target.markers,
    )
    names = [each.name for each in found if isinstance(each, Wheel)]
    assert names == ["app", "arm", "lib-core", "old-backport", "typing-stuff"]


def test_a_wheel_of_another_python_is_not_taken(tmp_path: Path) -> None:
    write_wheel(tmp_path, "both", "2.0", tag="cp38-cp38-win32")
    write_wheel(tmp_path, "both", "1.0")
    find = wheels.find_in(tmp_path)
    assert str(find(Requirement("both")).version) == "1.0"
    with pytest.raises(MissingWheel, match=r"both>=2: neither installed nor in"):
        find(Requirement("both>=2"))


def test_a_damaged_wheel_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut-1.0-py3-none-any.whl"
    path.write_bytes(b"PK")
    with pytest.raises(MissingWheel, match=r"cut-1.0.*no readable wheel"):
        wheels.find_in(tmp_path)


@pytest.mark.parametrize(
    "name", ["torch", "triton", "numpy", "nvidia-cublas", "nvidia_nccl_cu13", "cuda-x"]
)
def test_what_a_cuda_machine_has_is_left_out(name: str) -> None:
    assert wheels.is_left_out(Requirement(name))


@pytest.mark.parametrize("name", ["torchao", "tritonclient", "pytest", "tiktoken"])
def test_what_resembles_it_is_not(name: str) -> None:
    assert not wheels.is_left_out(Requirement(name))


def test_the_roots_are_the_dependencies_and_what_tests_import() -> None:
    names = {
        wheels.name_of(each)
        for each in wheels.root_requirements(ROOT / "pyproject.toml")
    }
    assert {"torch", "torchao", "pytest", "pydantic", "hypothesis"} <= names
    assert not {"mypy", "ruff"} & names


def test_pins_are_those_of_the_constraints() -> None:
    pins = wheels.read_pins(ROOT / "constraints.txt")
    for wanted in wheels.root_requirements(ROOT / "pyproject.toml"):
        assert wanted.specifier.contains(pins[wheels.name_of(wanted)]), wanted
    core = pinned(Requirement("Pydantic_Core>=2"), pins)
    assert str(core) == f"Pydantic_Core=={pins['pydantic-core']}"
    assert str(pinned(Requirement("unknown>=2"), pins)) == "unknown>=2"


def test_pip_is_asked_for_the_target_and_for_no_dependency(tmp_path: Path) -> None:
    target = Target(python="3.13", machine="aarch64")
    command = pip_command(target, Requirement("gguf==0.19.0"), tmp_path)
    assert {"--no-deps", "--only-binary=:all:", "gguf==0.19.0"} <= set(command)
    assert command[command.index("--python-version") + 1] == "3.13"
    platforms = [command[i + 1] for i, w in enumerate(command) if w == "--platform"]
    assert platforms
    assert all(platform.endswith("_aarch64") for platform in platforms)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """pip reaches this folder of wheels and no index."""
    found = tmp_path / "found"
    found.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(found))
    return found


def test_a_wheel_is_downloaded_for_the_target(offline: Path, tmp_path: Path) -> None:
    tag = "cp312-cp312-manylinux_2_28_x86_64"
    write_wheel(offline, "some-lib", "1.0", "numpy", tag=tag)
    target = Target(python="3.12", machine="x86_64")
    wheel = download(target, Requirement("some-lib==1.0"), tmp_path)
    assert wheel.path == tmp_path / f"some_lib-1.0-{tag}.whl"
    assert list(map(str, wheel.requires)) == ["numpy"]


@pytest.mark.usefixtures("offline")
def test_a_wheel_that_cannot_be_had_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "out")]) == 1
    error = capfd.readouterr().err
    pin = wheels.read_pins(ROOT / "constraints.txt")["torchao"]
    assert error.startswith(f"wheelhouse: error: torchao=={pin}: No matching")
    assert error.count("\n") == 1

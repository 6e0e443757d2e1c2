"""What a machine without network lacks, installed from a folder of wheels.

pip says what is lacking. Standard library only, since nothing of this project is
installed yet.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from scripts.offline.options import ROOT, wheelhouse_of
from scripts.offline.steps import Status, Step, StepRunner

# A CUDA machine has these of its own, in the builds that fit its driver.
LEFT_OUT = re.compile(r"torch|triton|numpy|(?:nvidia|cuda)-(?!ml-py$).*")
# The tests need it in addition to the dependencies of the package.
_TEST_PACKAGES = ("hypothesis",)
_WHEELS_S = 120.0


class MissingWheelError(LookupError):
    """No wheel satisfies a requirement; `str()` is the one line shown."""


def is_left_out(requirement: str) -> bool:
    """Whether the machine has the package of its own, or has to."""
    return LEFT_OUT.fullmatch(_name(requirement)) is not None


def _name(requirement: str) -> str:
    """The package's name in its normal form, "pydantic-core" for "pydantic_core>=2"."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def root_requirements() -> list[str]:
    """The dependencies of the package and those that only its tests need."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    tests = [
        line
        for line in project["optional-dependencies"]["dev"]
        if _name(line) in _TEST_PACKAGES
    ]
    return [*project["dependencies"], *tests]


def run_pip(*arguments: str, **variables: str) -> str:
    """What pip prints; raises MissingWheelError with the first error that it reports.

    `variables` are added to its environment.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )
    if done.returncode == 0:
        return done.stdout
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR: ")]
    reason = (errors or lines[-1:] or ["pip gave no reason"])[0]
    raise MissingWheelError(reason.removeprefix("ERROR: "))


def lacking(folder: Path, requirements: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The wheels of `folder` that this Python lacks, and why any requirement fails.

    What the machine has of its own must have the right version, but its requirements
    are not looked at: they are the machine's business.
    """
    wheels: set[Path] = set()
    problems: list[str] = []

    def ask(lines: Sequence[str], *options: str) -> None:
        try:
            wheels.update(_resolved(folder, lines, *options))
        except MissingWheelError as error:
            if len(lines) == 1:
                problems.append(f"{lines[0]}: {error}")
                return
            # pip stops at the first package that is missing. The others are wanted
            # all the same.
            for line in lines:
                ask([line], *options)

    ask([line for line in requirements if not is_left_out(line)])
    ask([line for line in requirements if is_left_out(line)], "--no-deps")
    return sorted(wheels), problems


def _resolved(folder: Path, requirements: Sequence[str], *options: str) -> set[Path]:
    """The wheels that pip would install for `requirements`."""
    if not requirements:
        return set()
    command = ["install", "--dry-run", "--report", "-", "--quiet", "--isolated"]
    command += ["--no-index", "--find-links", str(folder), "--only-binary=:all:"]
    # No setting of the machine's may add another place to look in.
    printed = run_pip(*command, *options, *requirements, PIP_CONFIG_FILE=os.devnull)
    urls = [item["download_info"]["url"] for item in json.loads(printed)["install"]]
    return {Path(url2pathname(urlparse(url).path)) for url in urls}


def install_wheels(runner: StepRunner, folder: Path | None, site: Path) -> None:
    """Install the packages that this Python lacks into `site`, and no others.

    `folder` holds their wheels; None stands for the checkout's wheelhouse, if there
    is one.
    """
    folder = wheelhouse_of(folder)
    if folder is None:
        runner.note("wheels", Status.OK, "no folder of wheels; installed packages only")
        return
    wheels, missing = lacking(folder, root_requirements())
    names = ", ".join(path.name.split("-")[0] for path in wheels) or "none"
    print(f"wheels this Python lacks: {names}", flush=True)
    if wheels:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index"]
        command += ["--no-deps", "--no-cache-dir"]
        command += ["--disable-pip-version-check", "--root-user-action=ignore"]
        command += ["--target", str(site), *map(str, wheels)]
        runner.run(Step(name="wheels", command=command, limit_s=_WHEELS_S))
        runner.add_to_path(site)
    else:
        runner.note("wheels", Status.OK, "all packages are installed")
    if missing:
        runner.note("requirements", Status.FAILED, "; ".join(missing))

"""Packages as pip leaves them in a folder, made without it."""

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, distributions
from pathlib import Path

import pytest

from llama_perf.rows import plugins

Install = Callable[..., Path]


def installer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A function that installs a package for this process and those it starts.

    What else this environment has installed adds nothing in this process.
    """

    def of_folder(*, group: str) -> list[EntryPoint]:
        entry_points = (dist.entry_points for dist in distributions(path=[str(folder)]))
        return [one for some in entry_points for one in some if one.group == group]

    monkeypatch.setattr(plugins, "entry_points", of_folder)
    monkeypatch.delenv(plugins.OFF, raising=False)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")

    def install(
        package: str,
        *,
        schemes: dict[str, str] | None = None,
        sets: dict[str, str] | None = None,
        files: dict[str, str] | None = None,
    ) -> Path:
        """Entry points by name, and the text of files in the package's folder."""
        info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        lines = []
        for group, entries in ((plugins.SCHEMES, schemes), (plugins.SETS, sets)):
            lines.append(f"[{group}]")
            lines += [f"{name} = {value}" for name, value in (entries or {}).items()]
        text = "\n".join(lines)
        (info / "entry_points.txt").write_text(text, encoding="utf-8")
        home = folder / package.replace("-", "_")
        home.mkdir()
        for name, text in {"__init__.py": "", **(files or {})}.items():
            (home / name).write_text(text, encoding="utf-8")
        plugins._offers.cache_clear()
        for module in [name for name in sys.modules if name.startswith(home.name)]:
            monkeypatch.delitem(sys.modules, module)
        return home

    return install

from __future__ import annotations

import gc
import random
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from plugin_project import Project, import_all
from schedule import CARD, place, scheduling

from llama_perf.llama.compiler import compiling_for_this_processor

# Examples are the same in every run, and none is too slow: a neighbour's work makes an
# example of a millisecond take a second.
settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow", action="store_true", help="run the tests that take minutes as well"
    )
    parser.addoption(
        "--part", metavar="I/N", help="of the tests that need a card, every n-th alone"
    )


def part_of(items: list[pytest.Item], text: str) -> list[pytest.Item]:
    """Every n-th of the tests that need a card, for "I/N"."""
    number, count = map(int, text.split("/"))
    assert 1 <= number <= count, f"part: {text}"
    on_card = [each for each in items if each.get_closest_marker("cuda") is not None]
    return on_card[number - 1 :: count]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first, and leave slow tests out unless asked for."""
    if part := items and items[0].config.getoption("--part"):
        items[:] = part_of(items, part)
    items.sort(key=lambda item: place(item.path.stem))
    for item in items:
        if item.get_closest_marker("cuda") is not None:
            assert item.path.stem in CARD, f"{item.path.stem} is not in CARD"
        slow = item.get_closest_marker("slow") is not None
        if slow and not item.config.getoption("slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; --slow runs it"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Those of `make test`; None leaves other kinds of distribution to pytest-xdist."""
    if config.getoption("dist") != "loadfile":
        return None
    return scheduling(config, log)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Give each test the same numbers, whichever tests its process ran before it."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session", autouse=True)
def _a_cache_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the user's is read or written: no cache, no lock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_PERF_CACHE", str(tmp_path_factory.mktemp("cache")))
        # Tests in several processes do not wait for one another.
        patch.setenv("LLAMA_PERF_LOCKS", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _compiled_for_this_processor() -> Iterator[None]:
    """A test that compiles finds no code that a run as another processor left."""
    with compiling_for_this_processor():
        yield


@pytest.fixture(scope="session", autouse=True)
def _an_interrupt_is_one() -> Iterator[None]:
    """A process of pytest-xdist ignores it, and so would what a test starts there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def _everything_imported() -> Iterator[None]:
    import_all()
    # A row collects garbage several times, and pytest's own objects are many.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def project(
    _everything_imported: None,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> Project:
    """A rootdir of tiny rows; its test module loads pytest's `pytester`."""
    return Project(pytester, monkeypatch)

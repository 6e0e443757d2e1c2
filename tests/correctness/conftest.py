from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from plugin_project import Project, import_all


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on a card run in one process: side by side they would share it."""
    for item in items:
        if item.get_closest_marker("cuda") is not None:
            item.add_marker(pytest.mark.xdist_group("cuda"))


@pytest.fixture(scope="session", autouse=True)
def _a_cache_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the user's is read or written: no cache, no lock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_PERF_CACHE", str(tmp_path_factory.mktemp("cache")))
        # Tests in several processes do not wait for one another.
        patch.setenv("LLAMA_PERF_LOCKS", str(tmp_path_factory.mktemp("locks")))
        yield


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

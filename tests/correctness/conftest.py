import gc
import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from llama_perf.kernels import cpp_library
from llama_perf.llama.compiler import own_cache_entries
from llama_perf.pytest_plugin.closeness import is_asked
from llama_perf.results.measurement import Ceiling
from llama_perf.rows import plugins
from llama_perf.rows.spec import RowSpec
from llama_perf.run.options import RunRequest
from llama_perf.run.session import Session
from tests.correctness.support.command_line import CommandLine
from tests.correctness.support.kernel_samples import INTERPRETED
from tests.correctness.support.plugin_project import Project
from tests.correctness.support.rank_pool import RankPool

# What else is installed changes no test; those of plugins install their own.
os.environ[plugins.OFF] = "1"

# Examples are the same in every run, and none is too slow: a neighbour's work makes an
# example of a millisecond take a second.
settings.load_profile("ci")


# The one file that runs where options select rows, and only there.
OF_ROWS = Path(__file__).parent / "closeness" / "test_rows.py"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path.suffix != ".py":
        return None
    return True if (collection_path == OF_ROWS) != is_asked(config) else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow", action="store_true", help="also run the tests that take minutes"
    )
    parser.addoption(
        "--part", metavar="I/N", help="only every n-th test that needs a card"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Have the process of Triton's interpreter do no more than its tests need."""
    if INTERPRETED:
        from tests.correctness.support.interpreter import hasten

        hasten(overflows=config.getoption("slow"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave slow tests out unless asked for."""
    if part := items and items[0].config.getoption("--part"):
        number, count = map(int, part.split("/"))
        assert 1 <= number <= count, f"part: {part}"
        on_card = [item for item in items if item.get_closest_marker("cuda")]
        items[:] = on_card[number - 1 :: count]
    for item in items:
        if item.get_closest_marker("slow") and not item.config.getoption("slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; --slow runs it"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Give each test the same numbers, whichever tests its process ran before it."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _one_test_at_a_time_on_the_card(request: pytest.FixtureRequest) -> Iterator[None]:
    """Processes of pytest-xdist would take each other's memory and time.

    `scripts/cuda_check` runs parts of these tests in processes of its own, together and
    on purpose.
    """
    needs_card = request.node.get_closest_marker("cuda") is not None
    if "PYTEST_XDIST_WORKER" not in os.environ or not needs_card:
        yield
        return
    with FileLock(Path(tempfile.gettempdir()) / "llama-perf-tests-on-the-card.lock"):
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_compiled_code(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that compiles finds the code of earlier ones, of this revision only."""
    if is_asked(request.config):
        yield
        return
    with own_cache_entries(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(cpp_library.folder()))
        yield


@pytest.fixture(scope="session", autouse=True)
def _imported_objects_are_no_garbage() -> None:
    """A row collects garbage several times, and libraries' objects are many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _a_cache_of_our_own(
    _own_compiled_code: None,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[None]:
    """Nothing else of the user's is read or written: no autoquant's times, no lock.

    Rows that options select are the user's own.
    """
    if is_asked(request.config):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_PERF_CACHE", str(tmp_path_factory.mktemp("cache")))
        # Tests in several processes do not wait for one another.
        patch.setenv("LLAMA_PERF_LOCKS", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _an_interrupt_is_one() -> Iterator[None]:
    """A process of pytest-xdist ignores it, and so would what a test starts there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


def _device(request: pytest.FixtureRequest) -> torch.device:
    """A card, or the CPU; in the process of Triton's interpreter for `interpreter`."""
    if request.param == "cuda" and (INTERPRETED or not torch.cuda.is_available()):
        pytest.skip("no CUDA device on this machine")
    if request.param == "interpreter" and not INTERPRETED:
        pytest.skip("kernels/test_interpreter.py runs it")
    return torch.device("cuda" if request.param == "cuda" else "cpu")


device = pytest.fixture(params=["cpu", CUDA])(_device)
card = pytest.fixture(params=["interpreter", CUDA])(_device)
any_device = pytest.fixture(params=["cpu", "interpreter", CUDA])(_device)


@pytest.fixture(scope="session")
def _everything_imported() -> None:
    """Have a row import all that it imports on its way.

    pytester forgets the modules that a run in this process imported, and torch's
    cannot be imported twice.
    """
    row = RowSpec(model="stories15M", dtype="float32", device="cpu", max_new_tokens=1)
    session = Session(["cpu"], options=RunRequest())
    # Measuring the bandwidth imports nothing.
    session.ceiling = cache(lambda _device: Ceiling(read_gb_s=20.0))
    for variant in (row, replace(row, quantization="int8wo", kernels="torchao")):
        result = session.run_row(variant)
        assert result.measurement is not None, result.reason
    # The compiler's modules too: they register themselves once in a process.
    torch.compile(torch.sin)(torch.ones(4))
    gc.collect()
    gc.freeze()


@pytest.fixture
def project(
    _everything_imported: None,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    cli: CommandLine,
) -> Project:
    """A rootdir of tiny rows; its test module loads pytest's `pytester`."""
    return Project(pytester, monkeypatch, cli)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture(scope="session")
def rank_pool() -> Iterator[Callable[..., RankPool]]:
    """The pool of so many ranks: `rank_pool(3).run(function, arguments)`.

    They are on a CPU, with `rank_pool(2, "cuda")` each on a GPU.
    """
    pools = cache(RankPool)
    made: list[RankPool] = []

    def of(count: int, device: str = "cpu") -> RankPool:
        made.append(pools(count, device))
        return made[-1]

    yield of
    for pool in made:
        pool.close()

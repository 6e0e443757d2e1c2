"""A device's measurements, a line a row and run: `history/<device key>.jsonl`.

Lines are only ever appended, so git merges two histories by union. Knows the files, and
nothing of the meaning of their figures.
"""

import fcntl
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from llama_perf.errors import RecordError, SpecError, check_not_negative, check_positive
from llama_perf.files import (
    CHECKOUT,
    check_readable_folder,
    is_checkout,
    make_folder,
    read_bytes,
    writing,
)
from llama_perf.metric import value_of
from llama_perf.results.disturbance import disturbance
from llama_perf.results.run import Report, Verdict, read_report
from llama_perf.strict_json import from_json, record, to_line

SUFFIX = ".jsonl"
KEPT_ENVIRONMENT = ("torch", "torchao", "driver", "weights")
"""The fields of a line that say on what its row ran."""
_LEAST, _MOST = 1e-9, 1e18
_MARKERS = (b"<<<<<<<", b"|||||||", b"=======", b">>>>>>>")


@record
class HistoryLine:
    """The figures of one row in one run, a line of `history/<device key>.jsonl`.

    `started` and `commit` are the run's, `id` and `fingerprint` the row's. `samples`
    counts its samples. `disturbed` says by what the row was disturbed; it is left out
    where nothing did. The last three are of its closeness over a text, if it was
    measured.
    """

    kind: Literal["llama-perf history"] = "llama-perf history"
    schema_version: Literal[1] = 1
    started: str
    commit: str | None = None
    id: str
    fingerprint: str
    verdict: Verdict | None = None
    tok_s: float
    decode_tok_s: float | None = None
    time_to_first_token_s: float | None = None
    peak_memory_bytes: int
    model_size_bytes: int
    device_bandwidth_gb_s: float | None = None
    samples: int
    sample_spread: float | None = None
    torch: str | None = None
    torchao: str | None = None
    driver: str | None = None
    weights: str
    disturbed: str | None = None
    text_closeness_db: float | None = None
    kl_nats: float | None = None
    perplexity: float | None = None

    def __post_init__(self) -> None:
        moment(self.started)
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, str) and not value.isprintable():
                raise SpecError(name, value, "allowed: characters that can be printed")
        check_positive("tok_s", self.tok_s)
        for name in ("peak_memory_bytes", "model_size_bytes", "samples"):
            check_not_negative(name, getattr(self, name))
        for name in ("tok_s", "peak_memory_bytes", "model_size_bytes"):
            # Ratios and medians of them stay numbers.
            if not _LEAST <= (value := getattr(self, name) or 1) <= _MOST:
                raise SpecError(name, value, f"allowed: {_LEAST:g} to {_MOST:g}")

    @property
    def key(self) -> tuple[str, str, float]:
        """What no other row of another run has."""
        return self.started, self.id, self.tok_s


def moment(started: str) -> datetime:
    """When a run started; raises SpecError for text that is no time."""
    try:
        time = datetime.fromisoformat(started)
    except ValueError:
        allowed = "allowed: a time such as 2026-01-02T03:04:05+00:00"
        raise SpecError("started", started, allowed) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def history_folder() -> Path:
    """`history/` of this checkout, or else of the working directory."""
    return (CHECKOUT if is_checkout() else Path.cwd()) / "history"


def path_of(folder: Path, device_key: str) -> Path:
    """The path of a device's history."""
    return folder / f"{device_key}{SUFFIX}"


def keys(folder: Path) -> list[str]:
    """The devices that have a history, even one that cannot be read.

    Raises SpecError where the folder cannot be listed.
    """
    check_readable_folder("history", folder)
    return sorted(path.stem for path in folder.iterdir() if path.suffix == SUFFIX)


def paths(folder: Path) -> list[Path]:
    """The files of a folder of histories; none where it cannot be listed."""
    # Whoever reads one gets the reason.
    with suppress(OSError, ValueError):
        return [path for path in folder.iterdir() if is_one(folder, path)]
    return []


def is_one(folder: Path, path: Path) -> bool:
    """Whether a file at `path` would be a device's history in this folder."""
    there, home = (Path(os.path.realpath(one)) for one in (path, folder))
    return there.suffix == SUFFIX and there.parent == home


def lines_of(report: Report) -> list[HistoryLine]:
    """The lines of a run's measured rows; raises RecordError for a slowed row."""
    where = report.environment
    lines = []
    for result, comparison in report.judged:
        if (figures := result.measurement) is None:
            continue
        if figures.injected_slowdown:
            raise RecordError(f"history: {result.id} ran with an injected slowdown")
        close = figures.closeness
        lines.append(
            HistoryLine(
                started=report.started,
                commit=where.commit,
                id=result.id,
                fingerprint=result.row.fingerprint,
                verdict=None if comparison is None else comparison.verdict,
                tok_s=figures.tok_s,
                decode_tok_s=figures.decode_tok_s,
                time_to_first_token_s=figures.time_to_first_token_s,
                peak_memory_bytes=figures.peak_memory_bytes,
                model_size_bytes=figures.model_size_bytes,
                device_bandwidth_gb_s=figures.device_bandwidth_gb_s,
                samples=len(figures.sample_ns),
                sample_spread=figures.sample_spread,
                torch=where.torch,
                torchao=where.torchao,
                driver=where.driver,
                weights=figures.weights,
                disturbed=disturbance(result, comparison) or None,
                text_closeness_db=value_of(close, "db"),
                kl_nats=value_of(close, "kl_nats"),
                perplexity=value_of(close, "perplexity"),
            )
        )
    return lines


def read_run(path: Path) -> tuple[Report, list[HistoryLine]]:
    """A run's results and their lines; raises RecordError that names the file."""
    report = read_report(path)
    try:
        lines = lines_of(report)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
    return report, lines


def append(path: Path, lines: Iterable[HistoryLine]) -> list[HistoryLine]:
    """Add the lines that a device's file lacks, and return them; raises WriteError.

    They are written at once behind what is there, and on the disk when this returns.
    Another process that adds at the same time waits. A disk that refuses them leaves
    the file as it was.
    """
    make_folder("history", path.parent)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    with writing(path), open(os.open(path, flags, 0o644), "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = file.read()
        known = {line.key for line in parse(text, source=str(path))[0]}
        new = [line for line in lines if line.key not in known]
        if not new:
            return []
        # A last line without an end would swallow the next one.
        start = "\n" if text and not text.endswith(b"\n") else ""
        added = start + "".join(f"{to_line(line)}\n" for line in new)
        _write_all(file.fileno(), added.encode(), size=len(text))
        return new


def _write_all(file: int, text: bytes, *, size: int) -> None:
    """Write `text` behind the first `size` bytes of a file, or leave those alone."""
    try:
        while text:
            text = text[os.write(file, text) :]
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)
        raise


def read(path: Path) -> tuple[list[HistoryLine], list[str]]:
    """The lines of a device's file by time, and what is wrong with the others.

    Raises RecordError where the file cannot be read, or no line of it.
    """
    text = read_bytes(path, error=RecordError)
    lines, problems = parse(text, source=str(path))
    if problems and not lines:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RecordError(f"{problems[0]}{more}; no line of the file can be read")
    if not lines:
        raise RecordError(f"{path}: it has no line")
    return lines, problems


def parse(text: bytes, *, source: str) -> tuple[list[HistoryLine], list[str]]:
    """The lines of a history by time, each once, and what is wrong with the others.

    A merge by union may leave a line twice, and those of several runs in any order.
    """
    lines: dict[tuple[str, str, float], HistoryLine] = {}
    problems = []
    for number, line in enumerate(text.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{source}:{number}"
        if line.startswith(_MARKERS):
            problems.append(f"{where}: a mark of git around a conflict")
            continue
        try:
            one = from_json(HistoryLine, line, source=where)
        except RecordError as error:
            problems.append(str(error))
            continue
        lines.setdefault(one.key, one)
    return sorted(lines.values(), key=lambda line: moment(line.started)), problems


def by_row(lines: Sequence[HistoryLine]) -> dict[str, list[HistoryLine]]:
    """The lines of each row, by its id.

    Those of a row that was another one under the same id are left out.
    """
    rows: dict[str, list[HistoryLine]] = {}
    for line in lines:
        rows.setdefault(line.id, []).append(line)
    return {
        row_id: [line for line in own if line.fingerprint == own[-1].fingerprint]
        for row_id, own in rows.items()
    }

"""`--baseline-patch`: a change of the baseline, offered as a patch.

Rows that became faster or smaller, and new ones, are measured as `llama-perf baseline
record` would. Knows neither pytest nor the command line.
"""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_perf.errors import RecordError, SpecError, UserError, WriteError
from llama_perf.files import is_absent, read_bytes, write_atomically
from llama_perf.results import baselines
from llama_perf.results.disturbance import disturbance
from llama_perf.results.run import Report, RowResult, Status, Verdict
from llama_perf.run.display import Display
from llama_perf.run.fresh_processes import default_processes, in_fresh_processes
from llama_perf.run.options import RunRequest
from llama_perf.run.revision import run_git
from llama_perf.strict_json import to_json
from llama_perf.words import counted

_FIELD = "baseline-patch"
_OFFERED = (Verdict.FASTER, Verdict.SMALLER, Verdict.NO_BASELINE)
# Whatever the user's git shows otherwise, `git apply` takes this.
_DIFF = (
    *("-c", "core.autocrlf=false", "-c", "core.safecrlf=false"),
    *("diff", "--no-index", "--no-color", "--no-ext-diff", "--no-textconv"),
    *("--no-prefix", "--unified=3"),
)


_BEGIN = b"diff --git "


@dataclass(frozen=True, slots=True)
class Offer:
    """What a run says of its patch; `problems` are what could not be done."""

    lines: Sequence[str] = ()
    problems: Sequence[str] = ()


def unfinished(request: RunRequest) -> Offer:
    """What is said where the run ended before its patch."""
    if request.baseline_patch is None:
        return Offer()
    return Offer([f"{_FIELD}: the run was ended before it, so there is none"])


def check(request: RunRequest, *, is_named: bool) -> None:
    """Raise UserError where a patch is asked for that could not be made or applied.

    `is_named`: the user named the baseline that the rows are compared with.
    """
    if request.baseline_patch is None:
        return
    if is_named:
        raise UserError(
            f"{_FIELD}: it changes this device's baseline, and the comparison is with"
            " another file; leave one of them out"
        )
    path = request.baseline_patch
    _top(request.baselines, path)
    if is_absent(path):
        return
    if read_bytes(path, error=UserError, most=len(_BEGIN)) not in {b"", _BEGIN}:
        raise SpecError(_FIELD, str(path), "it is there and is no patch of git")


def remove_older(request: RunRequest) -> None:
    """Remove the patch of an earlier run, which is checked: nobody takes it for new."""
    if request.baseline_patch is not None:
        request.baseline_patch.unlink(missing_ok=True)


def offer(report: Report, request: RunRequest, display: Display) -> Offer:
    """Measure the rows that the patch is for, and write it.

    What could not be measured or written is a problem of the offer; only an interrupt
    ends it.
    """
    path = request.baseline_patch
    if path is None:
        return Offer()
    results, lines = _offered(report, request)
    if not results:
        more = "other " if lines else ""
        return Offer([*lines, f"{_FIELD}: no {more}row is FASTER, SMALLER or new"])
    rows = [result.row for result in results]
    processes = default_processes(rows)
    each = counted(processes, "fresh process")
    display.note(f"{_FIELD}: {counted(len(rows), 'row')} in {each} each")
    try:
        environment, measured = in_fresh_processes(
            rows,
            processes=processes,
            options=request,
            display=display,
            leave_out=lambda problem: lines.append(f"{_FIELD}: left out: {problem}"),
        )
        measured, disturbed = _calm(measured)
        lines += disturbed
        if disturbed and not measured:
            return Offer(lines)
        found = baselines.find(request.baselines, environment.device_key)
        old = None if found is None else found[1]
        new = baselines.updated(old, environment=environment, results=measured)
        target = baselines.path_of(request.baselines, environment.device_key)
        write_atomically(path, _patch(target, to_json(new), path))
    except (RecordError, WriteError) as error:
        return Offer(lines, [f"{_FIELD}: no patch: {error}"])
    ids = {result.id for result in measured if result.status is Status.MEASURED}
    verdicts = Counter(
        comparison.verdict.value
        for comparison in report.comparisons
        if comparison.id in ids
    )
    words = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    lines.append(f"{_FIELD}: {path} has {counted(len(ids), 'row')} ({words});")
    lines.append(f"  git apply {path}")
    return Offer(lines)


def _offered(report: Report, request: RunRequest) -> tuple[list[RowResult], list[str]]:
    """The results of the rows to offer; a line for each that may not be offered."""
    results, lines = [], []
    for result, comparison in report.judged:
        if comparison is None or comparison.verdict not in _OFFERED:
            continue
        reason = disturbance(result, comparison)
        if result.measurement is not None and result.measurement.injected_slowdown:
            reason = "it ran with an injected slowdown"
        if request.damaged(result.id):
            reason = "it ran with injected damage"
        if reason:
            lines.append(f"{_FIELD}: left out: {result.id}: {reason}")
        else:
            results.append(result)
    return results, lines


def _calm(measured: Sequence[RowResult]) -> tuple[list[RowResult], list[str]]:
    """The results of the rows of which no process was disturbed; a line for each other.

    A slow process would make the noise of the new baseline larger, and so its limits.
    """
    words = {result.id: disturbance(result) for result in measured}
    words = {row_id: reason for row_id, reason in words.items() if reason}
    lines = [
        f"{_FIELD}: left out: {row_id}: a process was disturbed: {reason}"
        for row_id, reason in words.items()
    ]
    return [result for result in measured if result.id not in words], lines


def _top(folder: Path, path: Path) -> Path:
    """The top of the checkout that has the baselines; SpecError for none."""
    there = folder.absolute()
    # A device's first baseline makes the folder.
    while not there.is_dir():
        there = there.parent
    done = run_git(there, "rev-parse", "--show-toplevel")
    if done.returncode != 0:
        reason = f"the baselines in {folder} are in no checkout of git"
        raise SpecError(_FIELD, str(path), f"{reason}, so no patch can be applied")
    return Path(done.stdout.removesuffix("\n"))


def _patch(target: Path, text: str, path: Path) -> str:
    """What makes the file `target` this `text`, relative to the checkout's top."""
    top = _top(target.parent, path).resolve()
    name = target.resolve().relative_to(top)
    with tempfile.TemporaryDirectory(prefix="llama-perf-patch-") as temporary:
        folder = Path(temporary)
        old, new = Path("a") / name, Path("b") / name
        for side in (old, new):
            (folder / side).parent.mkdir(parents=True)
        (folder / new).write_text(text, encoding="utf-8")
        if target.is_file():
            (folder / old).write_bytes(target.read_bytes())
        else:
            old = Path("/dev/null")
        done = run_git(folder, *_DIFF, "--", str(old), str(new))
    if done.returncode != 1:
        raise RecordError(f"git found no difference: {done.stderr.strip()}")
    return done.stdout

"""Damages every file that a user can give, guided by the code that the damage reaches.

    .venv/bin/python -m pip install atheris
    .venv/bin/python -m scripts.studies.fuzz_readers --minutes 60 [READER...]

The readers and their valid files are those of `tests/correctness/support/readers.py`;
each has its share of the minutes, in a process of its own. An input is kept under
`--folder` as a finding if anything but a UserError comes of it: another exception, the
end of the process, 4 GB of memory, or 20 seconds. A reader goes on from the inputs that
an earlier run kept there.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from llama_perf.files import cache_folder

SLOWEST_S, MOST_MB = 20, 4096
_COUNT_EVERY = 64
_OWN_SHARE = 0.5


@dataclass(frozen=True)
class Place:
    """Where a reader's inputs, findings, log and counts are kept."""

    folder: Path

    @property
    def corpus(self) -> Path:
        """The inputs that reached code of their own."""
        return self.folder / "corpus"

    @property
    def findings(self) -> Path:
        """The inputs that ended in anything but a UserError."""
        return self.folder / "findings"

    @property
    def log(self) -> Path:
        """What libFuzzer said."""
        return self.folder / "log.txt"

    def count(self, runs: int) -> None:
        """Keep how many inputs this process has read."""
        (self.folder / f"runs.{os.getpid()}").write_text(str(runs), "ascii")

    @property
    def runs(self) -> int:
        """The inputs that all its processes have read."""
        return sum(int(path.read_text("ascii")) for path in self.folder.glob("runs.*"))

    def make(self) -> None:
        """Make its folders, and forget the counts of earlier runs."""
        for folder in (self.corpus, self.findings):
            folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("runs.*"):
            path.unlink()


def fuzz(name: str, place: Place, arguments: Sequence[str]) -> None:
    """Read damaged files of one kind until libFuzzer ends the process."""
    import atheris
    from torch._weights_only_unpickler import Unpickler

    with atheris.instrument_imports(include=["llama_perf", "gguf"]):
        from tests.correctness.support.readers import READERS, outcome
    from tests.correctness.support.damage import WORDS, damaged

    # All of torch would take minutes to instrument.
    atheris.instrument_func(Unpickler.load)
    reader, files = READERS[name], place.folder / f"files.{os.getpid()}"
    files.mkdir()
    path = reader.make(files)
    valid = path.read_bytes()
    (place.corpus / "valid").write_bytes(reader.part_of(valid))
    found = {finding.name for finding in place.findings.iterdir()}
    runs = 0

    def run(part: bytes) -> None:
        nonlocal runs
        runs += 1
        if runs % _COUNT_EVERY == 0:
            place.count(runs)
        try:
            outcome(reader, path, valid, part)
        except Exception as error:
            # One input for each place; libFuzzer would end at the first.
            last = traceback.extract_tb(error.__traceback__)[-1]
            stem = f"{type(error).__name__}-{Path(last.filename).stem}-{last.lineno}"
            if stem not in found:
                found.add(stem)
                (place.findings / stem).write_bytes(part)
                text = "".join(traceback.format_exception(error))
                (place.findings / f"{stem}.txt").write_text(text, "utf-8", "replace")

    def mutate(part: bytes, max_size: int, seed: int) -> bytes:
        # libFuzzer's own changes are of bytes: few lead from JSON to other JSON.
        chance = random.Random(seed)
        if chance.random() < _OWN_SHARE:
            part = damaged(part, reader.form, chance)[:max_size]
        else:
            part = atheris.Mutate(part, max_size)
        return part

    words = [*WORDS, *set(re.findall(rb"\w{3,30}", reader.part_of(valid)[:4000]))]
    lines = ("".join(f"\\x{byte:02x}" for byte in _bytes(word)) for word in words)
    dictionary = place.folder / "dictionary.txt"
    dictionary.write_text("".join(f'"{line}"\n' for line in lines if line), "ascii")
    atheris.Setup(
        [name, *arguments, f"-dict={dictionary}", str(place.corpus)],
        run,
        custom_mutator=mutate,
        enable_python_coverage=True,
    )
    atheris.Fuzz()


def _bytes(word: str | bytes) -> bytes:
    written = word.encode() if isinstance(word, str) else word
    return written[:60]


def run_reader(name: str, place: Place, seconds: float) -> list[object]:
    """Fuzz one reader in processes of its own; its line of the table."""
    place.make()
    start = time.monotonic()
    with place.log.open("ab") as log:
        while (left := seconds - (time.monotonic() - start)) > 1:
            arguments = (
                f"-max_total_time={int(left)}",
                f"-timeout={SLOWEST_S}",
                f"-rss_limit_mb={MOST_MB}",
                "-max_len=200000",
                f"-artifact_prefix={place.findings}/",
                "-print_final_stats=1",
            )
            words = [sys.executable, "-m", "scripts.studies.fuzz_readers", "--one"]
            subprocess.run(
                [*words, name, "--folder", str(place.folder.parent), "--", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=left + 600,
            )
    findings = [path for path in place.findings.iterdir() if path.suffix != ".txt"]
    return [name, place.runs, len(findings), round(time.monotonic() - start)]


def main() -> None:
    """Fuzz the readers named, or all of them, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help="default: all")
    parser.add_argument("--minutes", type=float, default=60.0, help="for all of them")
    parser.add_argument("--folder", type=Path, default=cache_folder() / "fuzz")
    parser.add_argument("--one", metavar="READER", help=argparse.SUPPRESS)
    known, rest = parser.parse_known_args()
    folder = known.folder.absolute()
    if known.one:
        fuzz(known.one, Place(folder / known.one), [*known.readers, *rest])
        return
    from tests.correctness.support.readers import READERS

    names = known.readers or list(READERS)
    if unknown := set(names) - set(READERS):
        parser.error(f"{min(unknown)}: no such reader; allowed: {', '.join(READERS)}")
    lines = []
    for name in names:
        seconds = known.minutes * 60 / len(names)
        lines.append(run_reader(name, Place(folder / name), seconds))
        print(*lines[-1], flush=True)
    print(tabulate(lines, ["reader", "executions", "findings", "seconds"], "pipe"))


if __name__ == "__main__":
    main()

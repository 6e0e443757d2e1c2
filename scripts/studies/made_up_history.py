"""`python -m scripts.studies.made_up_history FOLDER`: a history to try commands on.

It has 200 nights of three rows on a card that there is not, with a noise of 1 %. One
row lost 5 % in night 186 and another one gained 12 % in night 115. The commits are
this project's, 14 nights each; none of them made anything slower.
"""

import argparse
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from llama_perf.results import history
from llama_perf.results.history import HistoryLine
from llama_perf.rows.selection import load_set
from scripts.studies.history_study import NIGHTS, nights

KEY = "made-up-card"
COMMITS = (
    *("d36da1b", "9affe57", "f3789ab", "1aa9ffd", "41898a3", "4020898", "700c0d3"),
    *("3a8508b", "920f719", "2ef0f54", "670ea97", "197b44a", "198d045", "6df6de2"),
)
FIRST = datetime(2026, 5, 1, 2, 17, tzinfo=UTC)
# Of three rows: tok/s, peak bytes, changes.
_ROWS: Sequence[tuple[float, int, Sequence[tuple[int, float]]]] = (
    (74.0, 14_200_000_000, ()),
    (151.0, 8_100_000_000, ((186, -0.05),)),
    (204.0, 5_300_000_000, ((115, 0.12),)),
)


def made_up() -> Iterator[HistoryLine]:
    """All lines, night by night."""
    rows = load_set("cuda")[2:]
    speeds = [
        [first / 100 * value for value in nights(0.01, number, changes)]
        for number, (first, _, changes) in enumerate(_ROWS)
    ]
    for night in range(NIGHTS):
        for row, own, (_, peak_bytes, _) in zip(rows, speeds, _ROWS, strict=False):
            yield HistoryLine(
                started=(FIRST + timedelta(days=night)).isoformat(),
                commit=COMMITS[night * len(COMMITS) // NIGHTS],
                id=row.id,
                fingerprint=row.fingerprint,
                tok_s=own[night],
                peak_memory_bytes=peak_bytes,
                model_size_bytes=peak_bytes // 2,
                samples=5,
                torch="2.12.1" if night < 115 else "2.13.0",
                torchao="0.18.0",
                driver="580.65.06",
                weights="synthetic",
                disturbed="made up" if (night * 7 + len(row.id)) % 61 == 0 else None,
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Write the history into a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studies.made_up_history",
        description="Write a made-up history of 200 nights.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    path = history.path_of(parser.parse_args(argv).folder, KEY)
    added = history.append(path, made_up())
    print(f"{path}: {len(added)} lines added")


if __name__ == "__main__":
    main()

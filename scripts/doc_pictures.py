"""`python -m scripts.doc_pictures RESULTS NAME`: pictures of a report for `docs/`.

It draws the page of a run and takes its pictures in Chromium: the top, the charts, a
row's details in the dark, and the top on a phone. They go to `docs/pictures/`.
"""

import argparse
import base64
import tempfile
from collections.abc import Sequence
from pathlib import Path

from selenium.webdriver import Chrome

from llama_perf import report
from llama_perf.results.run import read_report
from scripts import ROOT

FOLDER = ROOT / "docs" / "pictures"


def main(arguments: Sequence[str] | None = None) -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="the results of a run")
    parser.add_argument("name", help="what the pictures' names begin with")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    text = "a part of the name of the row whose details are shown (default: the first)"
    parser.add_argument("--row", metavar="NAME", help=text)
    parsed = parser.parse_args(arguments)
    parsed.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        page = Path(temporary) / "run.html"
        report.write(read_report(parsed.results), page)
        for name, picture in pictures(page, parsed.row).items():
            (parsed.folder / f"{parsed.name}-{name}.png").write_bytes(picture)


def pictures(page: Path, row: str | None) -> dict[str, bytes]:
    """The pictures of a page as PNG, by what they show; `row` is in its table."""
    from tests.correctness.support.browser import opened, wait_for

    found = {}
    browser = opened(page, width=1280, height=1000)
    found["top"] = _picture(browser)
    browser = opened(page, width=1280, height=1160, at="charts")
    wait_for(browser, "document.querySelectorAll('#charts svg').length > 1")
    _settle(browser)
    found["charts"] = _picture(browser)
    browser = opened(page, width=1100, height=1250, theme="dark")
    buttons = "[...document.querySelectorAll('#rows tbody button')]"
    chosen = "" if row is None else f".filter(one => one.textContent.includes('{row}'))"
    browser.execute_script(f"{buttons}{chosen}[0].click()")
    wait_for(browser, "document.querySelector('dialog[open] svg') !== null")
    _settle(browser)
    found["details"] = _picture(browser)
    browser = opened(page, width=390, height=844)
    found["phone"] = _picture(browser)
    return found


def _settle(browser: Chrome) -> None:
    """Wait for what a chart draws after its frame."""
    browser.execute_async_script("setTimeout(arguments[0], 1500)")


def _picture(browser: Chrome) -> bytes:
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    return base64.b64decode(taken["data"])


if __name__ == "__main__":
    main()

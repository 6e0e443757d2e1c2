"""A headless Chromium for the tests of pages, one for the whole process of tests."""

import atexit
import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

_INSTALL = "apt-get install chromium chromium-driver"
_ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
    # A container has a small /dev/shm.
    "--disable-dev-shm-usage",
)


@cache
def _browser() -> Chrome:
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip(f"needs Chromium and its driver: {_INSTALL}")
    options = ChromeOptions()
    options.binary_location = str(programs[0])
    for argument in _ARGUMENTS:
        options.add_argument(argument)
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    # Named, so that selenium looks for none in the network.
    browser = Chrome(options, ChromeService(str(programs[1])))
    browser.set_script_timeout(20)
    atexit.register(browser.quit)
    return browser


def opened(
    path: Path, *, width: int = 1400, height: int = 1000, theme: str = "light"
) -> Chrome:
    """The browser, which has just opened the page and drawn its first charts."""
    browser = _browser()
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for log in ("browser", "performance"):
        browser.get_log(log)  # what is older
    browser.get(path.as_uri())
    return browser


def complaints(browser: Chrome) -> list[str]:
    """Errors and warnings that the page caused since they were last asked for."""
    return [entry["message"] for entry in browser.get_log("browser")]


def requests(browser: Chrome) -> list[str]:
    """The addresses that the page asked for since it was opened, but its own."""
    return [
        url
        for entry in browser.get_log("performance")
        if (message := _message(entry))["method"] == "Network.requestWillBeSent"
        and not (url := message["params"]["request"]["url"]).startswith(
            ("file:", "data:")
        )
    ]


def _message(entry: Mapping[str, Any]) -> Any:
    return json.loads(entry["message"])["message"]


def mark(browser: Chrome, name: str) -> float:
    """When the page set this mark, in ms since it was asked for; it waits for it."""
    script = """
        const done = arguments[1], wait = () => {
            const [found] = performance.getEntriesByName(arguments[0]);
            found ? done(found.startTime) : setTimeout(wait, 10);
        };
        wait();
    """
    when: float = browser.execute_async_script(script, name)
    return when

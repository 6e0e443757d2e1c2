"""A headless Chromium for the tests of pages, one for the whole process of tests."""

import atexit
import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.remote.webelement import WebElement

_INSTALL = "apt-get install chromium chromium-driver"
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
    # A container has a small /dev/shm.
    "--disable-dev-shm-usage",
)


@cache
def _browser() -> Chrome:
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip(f"needs Chromium and its driver: {_INSTALL}")
    options = ChromeOptions()
    options.binary_location = program
    for argument in _ARGUMENTS:
        options.add_argument(argument)
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    # Named, so that selenium looks for none in the network.
    browser = Chrome(options, ChromeService(driver))
    browser.set_script_timeout(20)
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    atexit.register(browser.quit)
    return browser


def opened(
    path: Path,
    *,
    width: int = 1400,
    height: int = 1000,
    theme: str = "light",
    at: str = "",
) -> Chrome:
    """The browser, which has just opened the page, at the section named `at`."""
    browser = _browser()
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for name in ("browser", "performance"):
        _log(browser, name)  # what is older
    # Another part of the same page would not be read anew.
    browser.get("about:blank")
    browser.get(f"{path.as_uri()}#{at}")
    return browser


def complaints(browser: Chrome) -> list[str]:
    """Errors and warnings that the page caused since they were last asked for."""
    return [entry["message"] for entry in _log(browser, "browser")]


def _log(browser: Chrome, name: str) -> list[Any]:
    entries: list[Any] = browser.get_log(name)  # type: ignore[no-untyped-call]
    return entries


def requests(browser: Chrome) -> list[str]:
    """The addresses that the page asked for since it was opened, but its own."""
    return [
        url
        for entry in _log(browser, "performance")
        if (message := _message(entry))["method"] == "Network.requestWillBeSent"
        and not (url := message["params"]["request"]["url"]).startswith(
            ("file:", "data:")
        )
    ]


def _message(entry: Mapping[str, Any]) -> Any:
    return json.loads(entry["message"])["message"]


def mark(browser: Chrome, name: str) -> float:
    """When the page set this mark, in ms since it was asked for; it waits for it."""
    marks = f"performance.getEntriesByName({json.dumps(name)})"
    wait_for(browser, f"{marks}.length > 0")
    when: float = browser.execute_script(f"return {marks}[0].startTime")
    return when


def work_ms(browser: Chrome) -> float:
    """The ms for which the page's thread has been on a core since it was asked for."""
    found = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    seconds: float = next(
        metric["value"] for metric in found if metric["name"] == "ThreadTime"
    )
    return seconds * 1000


def assert_quiet(browser: Chrome) -> None:
    """Nothing was complained of, and nothing was asked of a network."""
    assert complaints(browser) == []
    assert requests(browser) == []


def find(browser: Chrome, selector: str) -> WebElement:
    """The first element of the page that the selector of CSS names."""
    return browser.find_element("css selector", selector)


def texts(browser: Chrome, selector: str) -> list[str]:
    """The texts of the elements that can be seen."""
    script = """
        return [...document.querySelectorAll(arguments[0])]
            .filter((element) => element.checkVisibility())
            .map((element) => element.textContent.trim());
    """
    found: list[str] = browser.execute_script(script, selector)
    return found


def press(browser: Chrome, key: str) -> None:
    """Press a key, wherever the focus is."""
    ActionChains(browser).send_keys(key).perform()


def wait_for(browser: Chrome, condition: str) -> None:
    """Wait until a condition, in JavaScript, holds; a test fails after 20 s."""
    browser.execute_async_script(f"""
        const done = arguments[0];
        const wait = () => {{ ({condition}) ? done() : setTimeout(wait, 10); }};
        wait();
    """)

"""Whether everyone can use a page: contrast, themes, names, phones."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from llama_perf import report
from tests.correctness.support.browser import assert_quiet, find, opened
from tests.correctness.support.page_samples import ROWS, many_rows


def luminance(colour: str) -> float:
    """The relative luminance of "rgb(1, 2, 3)", as WCAG 2 defines it."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
        for share in shares
    ]
    return sum(map(float.__mul__, (0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(run_page: Path, theme: str) -> None:
    browser = opened(run_page, theme=theme)
    script = """
        const found = new Set();
        for (const element of document.querySelectorAll("body *")) {
            const text = [...element.childNodes].some(
                (node) => node.nodeType === 3 && node.textContent.trim());
            if (!text || !element.checkVisibility()) continue;
            let behind = element;
            const isClear = (e) => getComputedStyle(e).backgroundColor
                .replaceAll(" ", "") === "rgba(0,0,0,0)";
            while (isClear(behind)) behind = behind.parentElement;
            found.add(getComputedStyle(element).color + " on "
                + getComputedStyle(behind).backgroundColor);
        }
        return [...found];
    """
    pairs = [pair.split(" on ") for pair in browser.execute_script(script)]
    assert len(pairs) >= 7, "text, muted text, links, the banner and the badges"
    for pair in pairs:
        darker, lighter = sorted(map(luminance, pair))
        # What WCAG 2 asks of text at level AA.
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, pair
    is_dark = luminance(pairs[0][1]) < 0.5
    assert is_dark == (theme == "dark")


def test_the_button_changes_the_theme_and_a_reload_keeps_it(run_page: Path) -> None:
    browser = opened(run_page, theme="dark")
    behind = "return getComputedStyle(document.body).backgroundColor"
    button = find(browser, "#theme")
    assert button.get_attribute("aria-pressed") == "true"
    dark = browser.execute_script(behind)
    button.click()
    assert luminance(browser.execute_script(behind)) > 0.9
    browser.refresh()
    assert luminance(browser.execute_script(behind)) > 0.9
    find(browser, "#theme").click()
    assert browser.execute_script(behind) == dark
    browser.execute_script("localStorage.clear()")
    assert_quiet(browser)


@pytest.mark.parametrize("name", ["run_page", "chart_page"])
def test_a_phone_shows_it_without_scrolling_sideways(
    request: pytest.FixtureRequest, name: str
) -> None:
    browser = opened(request.getfixturevalue(name), width=400, height=800)
    assert browser.execute_script("return document.body.scrollWidth") <= 400
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
    assert_quiet(browser)


def test_every_control_and_picture_has_a_name(run_page: Path) -> None:
    browser = opened(run_page)
    controls = browser.find_elements(
        "css selector", "button, select, input, a, [tabindex='0']"
    )
    assert len(controls) > ROWS
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    wanted = {"button", "combobox", "searchbox", "link", "region", "table", "img"}
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in wanted
    ]
    assert {role for role, _ in found} >= {"button", "combobox", "searchbox", "link"}
    assert [role for role, text in found if not text] == []


def test_axe_finds_nothing(tmp_path: Path, chart_page: Path) -> None:
    spec = find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        pytest.skip("needs axe: pip install --no-deps axe-playwright-python")
    axe = Path(spec.origin).with_name("axe.min.js").read_text(encoding="utf-8")
    # It does not see what is behind text of these pages; a test above does.
    check = """
        const rules = { "color-contrast": { enabled: false } };
        axe.run(document, { rules, resultTypes: ["violations"] }).then((found) =>
            arguments[0](found.violations.map(
                (broken) => [broken.help, broken.nodes.map((node) => node.html)])));
    """
    small = tmp_path / "run.html"
    report.write(many_rows(10, environment_changes=("torch: 1 -> 2",)), small)
    for path, opener in ((chart_page, None), (small, None), (small, ".open")):
        browser = opened(path)
        if opener is not None:
            find(browser, opener).click()
        browser.execute_script(axe)
        assert browser.execute_async_script(check) == [], (path.name, opener)


def test_a_printed_page_is_light_and_shows_the_whole_table(run_page: Path) -> None:
    browser = opened(run_page, width=1032, theme="dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    # An A4 sheet across, without its margins.
    assert browser.execute_script("return document.body.scrollWidth") <= 1032
    cut = """
        return [...document.querySelectorAll("main .scroll")].filter(
            (part) => part.scrollHeight > part.clientHeight + 1
                || part.scrollWidth > part.clientWidth + 1).length
    """
    assert browser.execute_script(cut) == 0
    behind = "return getComputedStyle(document.body).backgroundColor"
    assert luminance(browser.execute_script(behind)) > 0.9
    command = "return document.querySelector('.verdicts pre').checkVisibility()"
    assert browser.execute_script(command)

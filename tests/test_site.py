"""The documentation's site in a browser, opened from the disk: `make docs` builds it first."""

import time
from pathlib import Path

import pytest
from browser import Browser, find_chromium

SITE = Path(__file__).parent.parent / "site"
PAGES = ("index", "mathematics", "migration", "method", "reference/convert", "reference/neurons")
# what reaches beyond the window and lies in no box that scrolls
OUTSIDE = """
[...document.querySelectorAll("article *")].filter(element => {
    const { right } = element.getBoundingClientRect()
    if (right <= document.documentElement.clientWidth + 1) return false
    for (let box = element; box.tagName != "ARTICLE"; box = box.parentElement)
        if (getComputedStyle(box).overflowX != "visible") return false
    return true
}).map(element => element.outerHTML.slice(0, 80))
"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"

pytestmark = [
    pytest.mark.skipif(not (SITE / ".buildinfo").exists(), reason="make docs builds the site"),
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(find_chromium(), tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def complaints(browser):
    said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    return [event for kind in said for event in browser.said(kind)]


def visit(browser, address):
    browser.events.clear()
    browser.open(f"{SITE.as_uri()}/{address}")


@pytest.mark.parametrize("page", PAGES)
def test_pages_fit_and_say_nothing_to_the_console(browser, page):
    backgrounds = []
    for width, dark in ((1280, False), (390, False), (390, True)):
        browser.shape(width, 900, dark)
        visit(browser, f"{page}.html")
        assert browser.evaluate(OUTSIDE) == [], width
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert not complaints(browser)
        backgrounds.append(browser.evaluate(BACKGROUND))
    assert backgrounds[0] == backgrounds[1] != backgrounds[2], "light, light, dark"


def test_the_search_works_from_the_disk(browser):
    visit(browser, "search.html?q=dead_zone")
    found = "[...document.querySelectorAll('#search-results li a')].map(a => a.href)"
    end = time.monotonic() + 30
    while not (links := browser.evaluate(found)) and time.monotonic() < end:
        time.sleep(0.1)
    assert any("reference/neurons.html" in link for link in links), links
    assert not complaints(browser)


def test_formulas_are_mathml_and_sums_have_their_limits_above_and_below(browser):
    browser.shape(1280, 900)
    visit(browser, "mathematics.html")
    rows = browser.evaluate(
        "[...document.querySelectorAll('.formula munderover')].map("
        "sum => [...sum.children].map(part => part.getBoundingClientRect().y))"
    )
    assert rows and all(above < sign < below for sign, below, above in rows), rows

"""A flip book in a real browser, from disk: by keyboard, by mouse, twice on a page, printed."""

import re

import pytest
import torch
from test_book import browser_path

from mathkit.draw import widgets

pytestmark = pytest.mark.browser
SHADES = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 3, 8, 8)
STATE = """() => [...document.querySelectorAll('.flipbook')].map(book => ({
  page: +book.querySelector('input').value,
  shade: (() => {
    const img = book.querySelector('img'), c = document.createElement('canvas').getContext('2d');
    c.drawImage(img, 0, 0);
    return c.getImageData(1, 1, 1, 1).data[0];
  })(),
  alt: book.querySelector('img').alt,
  said: book.querySelector('input').getAttribute('aria-valuetext'),
  read: book.querySelector('output').value,
  playing: book.querySelector('button').getAttribute('aria-pressed'),
}))"""
# Every page that is shown, in order: looking now and then would always meet the same ones.
RECORD = """() => {
  globalThis.seen = [];
  new MutationObserver(() => seen.push(document.querySelector('.flipbook input').value))
    .observe(document.querySelector('.flipbook img'), {attributes: true});
}"""
LOADED = "() => [...document.images].every(i => i.complete && i.naturalWidth)"


def flip(**options):
    values = [0.0, 0.25, 0.5, 0.75, 1.0]
    told = {"values": values, "start": 2, "describe": "From black to white."}
    return widgets.flipbook(SHADES, "grey", **{**told, **options})


@pytest.fixture(scope="module")
def chromium():
    executable = browser_path()
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=executable, args=["--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium, tmp_path):
    """Open a page with these flip books; an error in it or a request fails the test."""
    faults, opened = [], []

    def show(*books, script=True):
        body = "".join(book._repr_html_() for book in books)
        (tmp_path / "a.html").write_text(f"<!doctype html><title>t</title>{body}", encoding="utf-8")
        tab = chromium.new_page(java_script_enabled=script)
        opened.append(tab)
        tab.set_default_timeout(60_000)  # a busy machine is no fault of the flip book
        tab.on("pageerror", lambda e: faults.append(str(e)))
        tab.on("request", lambda r: r.url[:5] in ("data:", "file:") or faults.append(r.url))
        tab.goto((tmp_path / "a.html").as_uri())
        return tab

    yield show
    for each in opened:
        each.close()
    assert faults == []


def state(tab):
    tab.wait_for_function(LOADED)
    return tab.evaluate(STATE)


def test_the_keyboard_turns_its_pages_and_every_word_follows(tab):
    page = tab(flip())
    for key, number in [("ArrowRight", 3), ("End", 4), ("ArrowLeft", 3), ("Home", 0)]:
        page.locator("input").press(key)
        (now,) = state(page)
        value = f"{number / 4:g}"
        assert now["page"] == number and abs(now["shade"] - 255 * number / 4) <= 3
        assert (now["read"], now["said"]) == (value, f"grey {value}")
        assert now["alt"] == f"From black to white. grey {value}"


def test_the_same_flip_book_twice_on_a_page_is_two(tab):
    page = tab(flip(), flip(), flip(start=0))
    page.locator("input").nth(1).press("End")
    assert [book["page"] for book in state(page)] == [2, 4, 0]


def test_play_goes_round_and_a_touch_of_the_slider_stops_it(tab):
    page = tab(flip(interval=20))
    assert state(page)[0]["playing"] == "false"  # never by itself
    page.evaluate(RECORD)
    page.locator("button").press("Space")
    assert state(page)[0]["playing"] == "true"
    page.wait_for_function("seen.includes('4') && seen.lastIndexOf('1') > seen.indexOf('4')")
    page.locator("input").press("Home")
    assert [state(page)[0][name] for name in ("playing", "page")] == ["false", 0]
    page.locator("button").click()
    page.locator("button").click()
    assert state(page)[0]["playing"] == "false"


def test_arrows_and_space_stay_inside(tab):
    """A slide show around it must not turn its own page; other keys do pass."""
    page = tab(flip())
    page.evaluate("() => { window.heard = []; document.onkeydown = e => heard.push(e.key); }")
    for key in ("ArrowRight", "Home"):
        page.locator("input").press(key)
    page.locator("button").press("Space")
    assert page.evaluate("heard") == ["Home"]


def test_controls_have_names(tab):
    page = tab(flip(), flip(), widgets.flipbook(SHADES, ""))
    assert page.get_by_role("slider", name="grey", exact=True).count() == 2
    assert page.get_by_role("slider", name="page", exact=True).count() == 1
    assert page.get_by_role("button", name="Play").count() == 3
    assert page.get_by_role("group", name="From black to white.").count() == 2


def test_without_scripts_the_still_and_its_sentence_remain(tab):
    page = tab(flip(), script=False)
    assert page.get_by_role("img", name="From black to white. grey 0.5").is_visible()
    assert page.get_by_text("One of 5 pictures").is_visible()
    assert not page.get_by_role("slider").is_visible()


def test_a_figure_of_pixels_is_shown_larger_and_no_page_is_too_wide(tab):
    page = tab(flip())
    assert page.locator("img").bounding_box()["width"] > 256
    page.set_viewport_size({"width": 320, "height": 600})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert re.search("pixelated", page.locator("img").get_attribute("style"))

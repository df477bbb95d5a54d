"""The laboratory's page, by mouse and by keyboard, against mathkit's pictures and numbers."""

import contextlib
import gzip
import io
import re
from pathlib import Path

import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image
from test_book import WIDER, browsing, watch

import mathkit as mk
from book import build, deck, pages, press, scan
from book.laboratory import pack
from mathkit.chapters import treatment
from mathkit.diffusion.directions import read_direction
from mathkit.draw import style

SIZE = 11e6  # bytes of the one-file page, at most
SAYS = "text => document.getElementById('lab-state')?.textContent.includes(text)"
PIXELS = """name => [...document.getElementById(`lab-${name}`).getContext('2d')
  .getImageData(0, 0, 64, 64).data]"""
SPAN = 'Go to <span class="laboratory" data-at="seed=4&amp;find=1">the laboratory</span>.'
CASE = "# 91 T\n\n| case file | time |\n|---|---|\n| 91 | 5 min |\n\n"


def unpacked(text, size):
    """The bytes again, by one large integer."""
    held = 0
    for letter in text:
        held = held << 7 | ord(letter) & 127
    return (held >> 7 * len(text) - 8 * size).to_bytes(size, "big") if size else b""


@pytest.mark.parametrize("size", range(16))
def test_seven_bits_a_letter_hold_every_byte(size):
    raw = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    assert unpacked(pack.digits(raw), size) == raw
    assert unpacked(pack.digits(b"\0" * size), size) == b"\0" * size


def test_what_would_end_a_string_or_a_script_is_not_written():
    text = pack.digits(bytes(range(256)) * 7)
    assert not set(text) & set(pack.UNSAFE.decode())
    assert max(map(ord, text)) < 256 and len(text) == 8 * 256


def test_planes_part_the_bytes_of_numbers():
    numbers = np.arange(1000, dtype="<u2")
    first, second = np.frombuffer(pack.planes(numbers.tobytes()), np.uint8).reshape(2, -1)
    assert (first + 256 * second.astype(int) == numbers).all()
    with pytest.raises(ValueError, match="numbers of two bytes, got 3"):
        pack.planes(b"abc")


def test_packed_weights_are_the_bytes_of_the_file():
    raw = pack.weights(pack.READER)[:4096]
    part = pack.packed(raw, halves=True)
    small = unpacked(part["text"], 7 * len(part["text"]) // 8)
    assert gzip.decompress(small) == pack.planes(raw) and part["length"] == len(raw)


def test_nothing_in_a_page_ends_its_script():
    assert "<" not in pack.literal("<!--</script>")


def marked_notebook():
    return new_notebook(cells=[new_markdown_cell(CASE + SPAN), new_code_cell("x = 1")])


def test_a_chapter_leads_into_the_laboratory():
    (cell, _) = pages.chapter(marked_notebook()).cells
    assert '<a href="laboratory.html#seed=4&amp;find=1">the laboratory</a>' in cell.source


def test_a_deck_has_the_laboratory_on_a_slide():
    slides = deck.slides(marked_notebook(), "91_t")
    (visit,) = [slide for slide in slides if slide.kinds == ("laboratory",)]
    assert 'data-src="laboratory.html#seed=4&amp;find=1"' in visit.body[0]
    assert not any("<span" in text for slide in slides for text in [*slide.body, *slide.notes])


def test_links_to_chapters_that_are_not_there_are_words():
    text = "see [one](01_a.ipynb) and [two](02_b.ipynb)"
    assert pages.reachable(text, ["02_b"]) == "see one and [two](02_b.ipynb)"


# In a browser ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The page as one file."""
    return pack.write(tmp_path_factory.mktemp("single") / pack.SINGLE)


@pytest.fixture(scope="module")
def browser():
    with browsing() as context:
        yield context.browser


@contextlib.contextmanager
def opened(browser, width=1280, height=900, **settings):
    """A tab without a network, and what it complains of."""
    view = {"width": width, "height": height}
    context, complaints = browser.new_context(offline=True, viewport=view, **settings), []
    context.set_default_timeout(180_000)
    tab = context.new_page()
    watch(tab, complaints)
    yield tab
    context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def bench(single, browser):
    """The page in a tab: seed 1 dreamt, its directions found, by two clicks of the mouse."""
    with opened(browser) as tab:
        tab.goto(single.as_uri())
        tab.get_by_role("button", name="Dream").click()  # waits until she is awake
        until(tab, "Somebody stands")
        tab.get_by_role("button", name="Find them").click()
        until(tab, "Found 3")
        yield tab


def until(tab, text):
    tab.wait_for_function(SAYS, arg=text)


def picture(tab, name):
    """What a canvas shows, (64, 64, 3)."""
    return np.array(tab.evaluate(PIXELS, name)).reshape(64, 64, 4)[..., :3]


def drag(tab, strength):
    tab.evaluate("document.getElementById('lab-state').textContent = ''")
    tab.locator("#lab-strength").fill(str(strength))
    until(tab, f"Dragged by {strength:.2f}".replace("-", "\u2212").replace("0.", "."))


@pytest.mark.browser
def test_the_page_is_one_small_file(single):
    assert single.stat().st_size < SIZE
    assert single.read_bytes().isascii() is False  # seven bits a letter, some of them two bytes
    assert scan.faults(single.parent) == []


@pytest.mark.browser
def test_she_dreams_what_the_notebooks_show(bench):
    image = mk.sample(mk.load_model("alice"), 1, seed=1)
    assert np.abs(picture(bench, "dreamt") - style.pixels(image[0])).max() <= 1
    read = float(mk.read_factors(image)[0, mk.puppets.STRANGER])
    assert bench.locator("#lab-dreamt-reading").inner_text().endswith(f"{read:.2f}".lstrip("0"))


@pytest.mark.browser
def test_the_values_are_those_of_the_notebooks(bench):
    p = mk.load_model("alice")
    at = {}
    mk.sample(p, 1, seed=1, callback=lambda _, t, x: at.update({t: x.clone()}))
    S = mk.svd(mk.jacobian(mk.encoder(p, 500), at[500]), 3).S
    shown = bench.locator(".lab-directions small").all_inner_texts()
    assert [re.search(r"[\d.]+", text)[0] for text in shown] == [f"{float(s):.2f}" for s in S]


@pytest.mark.browser
def test_a_drag_changes_one_picture_and_its_control_hardly(bench):
    drag(bench, 0.4)
    dreamt, dragged, beside = (picture(bench, name) for name in ("dreamt", "dragged", "beside"))
    assert np.abs(dragged - dreamt).mean() > 3 * np.abs(beside - dreamt).mean() > 0
    drag_name = bench.locator("#lab-dragged-name").inner_text()
    assert drag_name == "Along direction 1"
    bench.get_by_role("button", name="Back to 0").click()
    bench.wait_for_function(
        "() => document.getElementById('lab-dragged-name').textContent === 'Dragged'"
    )
    assert (picture(bench, "dragged") == dreamt).all()


@pytest.mark.browser
def test_the_last_of_many_moves_is_the_one_that_stays(bench):
    slider = bench.locator("#lab-strength")
    for strength in (0.1, -0.6, 0.3, 0.2):
        slider.fill(str(strength))
    until(bench, "Dragged by .20")
    after = picture(bench, "dragged")
    drag(bench, 0.1)
    drag(bench, 0.2)
    assert (picture(bench, "dragged") == after).all()


@pytest.mark.slow
@pytest.mark.browser
def test_two_directions_side_by_side(bench):
    drag(bench, 0.1)
    bench.locator("#lab-other").select_option("2")
    drag(bench, 0.3)
    second = picture(bench, "beside")
    radios = bench.locator("[name=lab-direction]")
    radios.nth(1).check(force=True)  # it was beside the first, and is the dragged one now
    drag(bench, 0.2)
    drag(bench, 0.3)
    assert (picture(bench, "dragged") == second).all()
    assert bench.locator("#lab-other").input_value() == "random"
    assert bench.locator("#lab-other option[value='2']").count() == 0
    radios.nth(0).check(force=True)


@pytest.mark.slow
@pytest.mark.browser
def test_another_random_direction_is_another_picture(bench):
    drag(bench, 0.4)
    before = picture(bench, "beside")
    bench.locator("#lab-other").select_option("again")
    until(bench, "Dragged by .40")
    assert bench.locator("#lab-other").input_value() == "random"
    bench.wait_for_function("() => location.hash.includes('random=2')")
    assert (picture(bench, "beside") != before).any()


@pytest.mark.browser
def test_what_is_saved_is_what_is_seen(bench, tmp_path):
    drag(bench, 0.3)
    with bench.expect_download() as found:
        bench.get_by_role("button", name="picture", exact=True).click()
    image = np.array(Image.open(io.BytesIO(Path(found.value.path()).read_bytes())).convert("RGB"))
    assert image.shape == (512, 512, 3)
    assert (image == picture(bench, "dragged").repeat(8, 0).repeat(8, 1)).all()
    with bench.expect_download() as found:
        bench.get_by_role("button", name="direction", exact=True).click()
    told, p = read_direction(found.value.path()), mk.load_model("alice")
    assert (told.seed, told.t, told.map, told.strength) == (1, 500, "h", 0.3)
    xt = treatment.trajectory(p, told.seed, [told.index], told.t)
    moved = mk.move(p, xt, told.t, told.v, told.strength, steps=1)[-1]
    again = mk.denoise(p, moved, told.t, times=treatment.grid(p, told.t))
    assert np.abs(picture(bench, "dragged") - style.pixels(again[0])).max() <= 1


@pytest.mark.slow
@pytest.mark.browser
def test_the_address_leads_back(bench, single):
    drag(bench, 0.2)
    address = bench.evaluate("location.hash")
    assert set(address[1:].split("&")) >= {
        "seed=1",
        "t=500",
        "map=h",
        "k=3",
        "direction=1",
        "find=1",
    }
    before, other = picture(bench, "dragged"), bench.context.new_page()
    other.goto(single.as_uri() + address)
    until(other, "Dragged by .20")
    assert (picture(other, "dragged") == before).all()
    other.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_read_by_everybody(bench, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    bench.emulate_media(color_scheme=scheme)
    bench.evaluate("document.getElementById('lab-treat').open = true")
    broken = axe.run(bench).response["violations"]
    bench.evaluate("document.getElementById('lab-treat').open = false")
    assert [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in broken] == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 390, 768, 1920])
def test_nothing_is_wider_than_the_screen(bench, width):
    bench.set_viewport_size({"width": width, "height": 800})
    assert bench.evaluate(WIDER) == 0
    bench.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.browser
def test_the_region_moves_by_keys_and_by_mouse(bench):
    bench.locator("#lab-treat summary").click()
    region = bench.get_by_role("button", name="Region")
    columns = r"columns (\d+) to (\d+), rows (\d+) to (\d+)"
    place = lambda: tuple(map(int, re.search(columns, region.get_attribute("aria-label")).groups()))  # noqa: E731
    left, right, top, bottom = place()
    assert left < 54 < right  # where the Stranger of seed 1 stands
    region.focus()
    region.press("ArrowLeft")
    region.press("Shift+ArrowLeft")
    assert place() == (left - 1, right - 2, top, bottom)
    box = bench.locator("#lab-screen").bounding_box()
    bench.mouse.move(box["x"] + box["width"] / 8, box["y"] + box["height"] / 8)
    bench.mouse.down()
    bench.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    bench.mouse.up()
    assert place() == (8, 15, 8, 31)
    bench.locator("#lab-treat summary").click()


@pytest.mark.browser
@pytest.mark.slow
def test_the_course_takes_him_out(bench):
    bench.reload()
    until(bench, "Found 3")
    bench.locator("#lab-treat summary").click()
    bench.get_by_role("button", name="Give it").click()
    until(bench, "Treated")
    assert float(bench.locator("#lab-cured-reading").inner_text().split()[-1]) < 0.5


@pytest.mark.browser
def test_all_of_it_by_keyboard(single, browser):
    with opened(browser, 390, 844, reduced_motion="reduce") as tab:
        tab.goto(single.as_uri())
        until(tab, "awake")
        tab.keyboard.press("Tab")
        tab.keyboard.type("2")
        tab.keyboard.press("Enter")
        until(tab, "is alone")
        tab.locator("#lab-reset").focus()
        seen = []
        while (seen or [""])[-1] != "lab-find":
            tab.keyboard.press("Tab")
            seen.append(tab.evaluate("document.activeElement.id"))
        tab.keyboard.press("Enter")
        until(tab, "Found 3")
        for _ in range(4):
            tab.keyboard.press("Tab")
        tab.keyboard.press("ArrowRight")  # the second direction
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.id") == "lab-strength"
        for _ in range(5):
            tab.keyboard.press("ArrowRight")
        until(tab, "Dragged by .10")
        assert tab.locator("#lab-dragged-name").inner_text() == "Along direction 2"
        tab.keyboard.press("Home")
        until(tab, "Dragged by \u2212.80")


@pytest.mark.browser
@pytest.mark.parametrize("lack", ["WebAssembly.validate = () => false", "delete window.Worker"])
def test_an_old_browser_is_told(single, browser, lack):
    with opened(browser) as tab:
        tab.add_init_script(lack)
        tab.goto(single.as_uri())
        tab.wait_for_selector("#lab-alarm:not([hidden])")
        assert "lacks WebAssembly with SIMD, workers" in tab.locator("#lab-alarm").inner_text()
        assert tab.get_by_role("button", name="Dream").is_disabled()


@pytest.mark.browser
def test_a_seed_that_is_none_is_told(bench):
    bench.locator("#lab-seed").fill("-1")
    bench.get_by_role("button", name="Dream").click()
    until(bench, "The seed is a whole number")
    bench.locator("#lab-seed").fill("1")


@pytest.mark.browser
def test_the_books_page_wakes_her_from_disk(tmp_path, browser):
    index = build.html([("91_t", marked_notebook())], tmp_path / "html")
    with opened(browser, 390, 844) as tab:
        tab.goto((index.parent / "91_t.html").as_uri())
        tab.locator("article").get_by_role("link", name="the laboratory").click()
        until(tab, "Found 3")  # of seed 4, as the link asks
        assert tab.evaluate("location.hash").startswith("#seed=4") and tab.evaluate(WIDER) == 0


@pytest.mark.browser
def test_a_deck_has_its_own_laboratory(tmp_path):
    (made,) = press.decks([("91_t", marked_notebook())], {}, tmp_path / "deck")
    assert (made.parent / pack.SINGLE).stat().st_size < SIZE

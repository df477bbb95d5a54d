"""Decks, handouts and the teacher's page: a small chapter made by hand, and a real browser."""

import base64
import io
import random
import re
import shutil
from functools import cache
from urllib.parse import urlsplit

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from test_book import browsing

from book import build, deck, handout, press, printer, scan, teach
from book.execute import read
from book.paths import BUILD, chapters

NAME = "21_the_fixture"
FLIP = """<div><input type="range" aria-label="frame" min="0" max="9" value="5">
<button type="button">play</button></div>"""
FORMULA = "$$A = \\begin{pmatrix} 1 & 2\\\\ 3 & 4\\end{pmatrix}$$"
SAID = ["The first thing.", "The **second** thing, $a^2$.", "One more.", "Told by the fire."]


def say(*sentences):
    return [f'<span class="say">{sentence}</span>' for sentence in sentences]


def png(width=960, height=480):
    raw = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(raw, format="png")
    return base64.b64encode(raw.getvalue()).decode()


def shows(source, *data, text="", **metadata):
    outputs = [new_output("display_data", data=d) for d in data]
    outputs += [new_output("stream", name="stdout", text=text)] if text else []
    return new_code_cell(source, outputs=outputs, metadata={"tags": ["slide"], **metadata})


def exercise(number, minutes):
    folds = {"Hint": "A nudge.", "Solution": "```python\nanswer = 42\n```\n\nSince six by nine."}
    folded = "\n\n".join(
        f"<details><summary>{k}</summary>\n\n{v}\n\n</details>" for k, v in folds.items()
    )
    head = f"### Exercise {number} ({minutes} minutes): a question\n\nHow many, of $n$?"
    return [
        new_markdown_cell(f"{head}\n\n{folded}"),
        new_code_cell("given = 7", outputs=[new_output("stream", name="stdout", text="seven")]),
        new_code_cell("shown = nothing"),
        new_code_cell(f"answer_{number} = ..."),
        new_code_cell(f"mk.check(answer_{number}, 42)"),
    ]


def fixture():
    one, two, three, four = say(*SAID)
    cells = [
        new_markdown_cell("# 21 The fixture\n\n| a | table |\n|---|---|\n| of | a case file |"),
        new_markdown_cell("Words of the introduction."),
        new_markdown_cell("## Alpha", metadata={"minutes": 6}),
        new_markdown_cell(f"Before it, to be said. {one} In between.\n\n{two}"),
        new_markdown_cell(FORMULA, metadata={"tags": ["slide"]}),
        new_code_cell("hidden = 1", outputs=[new_output("stream", name="stdout", text="no slide")]),
        shows("draw(1)", {"image/png": png()}, alt=["A teal picture."]),
        new_markdown_cell(f"After the picture. {three}\n\nSee [chapter 02](02_x.ipynb), and more."),
        new_markdown_cell("### Beneath\n\nOnly prose stands here."),
        new_markdown_cell(f"## Beta\n\n{four}", metadata={"minutes": 4, "tags": ["story"]}),
        shows("flip()", {"text/html": FLIP, "image/png": png()}, text="one line"),
        new_markdown_cell("## For home\n\nMore of it.", metadata={"minutes": 0}),
        shows("print(2)", text="two\n"),
        new_markdown_cell("## Summary\n\n* A definition, $x$.", metadata={"minutes": 1}),
        new_markdown_cell("## Exercises\n\nReplace the dots."),
        *exercise(1, 5),
        *exercise(2, 8),
        new_markdown_cell("## References\n\n* Somebody."),
    ]
    return new_notebook(cells=cells, metadata={"mathkit": {"blurb": "A chapter for trying."}})


def bullets(slides):
    return [line[2:] for s in slides for line in s.body if line.startswith("* ")]


def text_of(slides):
    return "\n".join("\n".join([s.title, *s.body, *s.notes]) for s in slides)


def test_bullets_are_the_marked_sentences_and_notes_the_rest():
    slides = deck.slides(fixture(), NAME)
    assert bullets(slides) == SAID
    notes = "\n".join(note for s in slides for note in s.notes)
    for words in ("to be said", "In between", "After the picture", "Only prose", "and more"):
        assert words in notes
    assert not any(sentence in notes for sentence in SAID)
    assert "case file" not in notes and "02_x" not in notes and "chapter 02" in notes


def test_a_text_stays_with_its_picture_whatever_table_comes_before():
    table, moving = {"text/html": "<table></table>"}, {"text/html": '<figure class="flipbook">'}
    picture = {"image/png": png()}
    cell = shows("all()", table, picture, moving, picture, alt=["One.", "It moves.", "Two."])
    shown = deck.pictures(cell)
    assert ['alt="One."' in shown[1], 'alt="Two."' in shown[3]] == [True, True]


def test_slides_come_in_the_order_of_the_cells_and_home_after_the_end():
    slides = deck.slides(fixture(), NAME)
    assert [s.kinds[0] for s in slides] == [
        "title", "points", "picture", "points", "picture", "heading", "end", "print",
    ]  # fmt: skip
    titles = [s.title for s in slides]
    assert titles[1:7] == ["Alpha", "Alpha", "Beta", "Beta", "Summary", "Stop the tape"]
    assert titles[7] == "For home" and "home" in slides[7].kinds
    assert FORMULA in slides[1].body and "A teal picture." in slides[2].body[0]
    assert "story" in slides[3].kinds and "range" in slides[4].body[0]


def test_exercises_references_and_unmarked_cells_are_on_no_slide():
    everything = text_of(deck.slides(fixture(), NAME))
    for words in ("How many", "six by nine", "Somebody", "no slide", "hidden"):
        assert words not in everything


def test_the_minutes_add_up():
    nb = fixture()
    assert deck.minutes(nb) == [("Alpha", 6), ("Beta", 4), ("For home", 0), ("Summary", 1)]
    slides = deck.slides(nb, NAME)
    assert sum(s.seconds for s in slides) == pytest.approx(60 * 11, abs=len(slides))
    clocks = [re.findall(r"Minutes (\d+) to (\d+) of 11", "\n".join(s.notes)) for s in slides]
    spans = [tuple(map(int, found[0])) for found in clocks if found]
    assert spans[0][0] == 0 and spans[-1][1] == 11
    assert all(a == c or b == c for (a, b), (c, _) in zip(spans, spans[1:], strict=False))
    assert "Outside the 11 minutes" in slides[-1].notes[0]


def test_a_slide_has_at_most_four_bullets():
    many = [f"Sentence {i}." for i in range(11)]
    cells = [new_markdown_cell("# 1 T"), new_markdown_cell("## A\n\n" + " ".join(say(*many)))]
    slides = deck.slides(new_notebook(cells=cells), "01_t")
    assert bullets(slides) == many
    assert [len(s.body) for s in slides[1:-1]] == [4, 4, 3]


def test_a_deck_leaves_its_notebook_alone():
    nb, same = fixture(), fixture()
    for cell, twin in zip(nb.cells, same.cells, strict=True):
        twin["id"] = cell["id"]
    deck.page(nb, NAME)
    handout.texts(nb, NAME)
    assert nb == same


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem[:2])
def test_every_chapter_gives_a_deck_and_a_handout(path):
    nb = read(path)
    slides = deck.slides(nb, path.stem)
    assert len(slides) >= 12 and bullets(slides)
    assert any("picture" in s.kinds for s in slides)
    assert all(s.title for s in slides)
    exercises = handout.exercises(nb)
    assert len(exercises) >= 3
    for found in exercises:
        assert {"Hint", "Solution"} <= {name for name, _ in found.folded}
        assert found.minutes and found.question
    paper = handout.sheet(nb, path.stem)
    assert "details" not in paper and "mk.check(" not in paper
    assert not any(body in paper for e in exercises for name, body in e.folded if name != "Hint")


def test_a_chapter_without_marks_still_gives_a_deck():
    cells = [
        new_markdown_cell("# 3 Bare\n\nOnce upon a time."),
        new_markdown_cell("## One\n\nHere f(x) = 1.5 holds. And more.\n\n## Two\n\n$$x$$"),
        new_code_cell("draw()", outputs=[new_output("display_data", data={"image/png": png()})]),
    ]
    slides = deck.slides(new_notebook(cells=cells), "03_bare")
    assert [s.kinds[0] for s in slides] == ["title", "points", "points", "picture", "end"]
    assert bullets(slides) == ["Once upon a time.", "Here f(x) = 1.5 holds."]
    assert slides[3].title == "Two"


def test_an_unknown_name_is_told_what_there_is():
    with pytest.raises(
        ValueError, match="no notebook starts with 99; there are: .*06_the_jacobian"
    ):
        build.main(["deck", "99"])
    with pytest.raises(ValueError, match="no notebook starts with 99"):
        build.main(["handout", "99"])


def test_the_handout_asks_and_the_solutions_answer():
    sheet, solutions = handout.texts(fixture(), NAME).values()
    assert sheet.count("How many, of $n$?") == 2 and "A definition" in sheet
    for words in ("six by nine", "A nudge", "mk.check", "answer_1", "Replace the dots"):
        assert words not in sheet
    heights = [int(h) for h in re.findall(r"height: (\d+)mm", sheet)]
    assert len(heights) == 2 and heights[0] < heights[1]  # the longer exercise has more room
    assert solutions.count("six by nine") == 2 and solutions.count("**Hint.** A nudge.") == 2
    assert "given = 7" in sheet and "seven" in sheet


def test_a_chapter_without_exercises_is_told():
    with pytest.raises(ValueError, match="21_x has no exercises"):
        handout.sheet(new_notebook(cells=[new_markdown_cell("# 21 X")]), "21_x")


FRAGMENT = """### Before

Needs: {needs}

Calculus.

### Ask

* Why? *Because.*
"""


def closure(given):
    """For each chapter all that it rests on, by walking."""
    above = {}
    for n, direct in given.items():
        above[n] = {m for k in direct for m in {k, *above[k]}}
    return above


@pytest.mark.parametrize("seed", range(5))
def test_the_graph_draws_no_arrow_that_follows_and_none_goes_up(seed):
    rng = random.Random(seed)
    numbers = [f"{i:02}" for i in range(1, 13)]
    given = {n: [m for m in numbers[:i] if rng.random() < 0.3] for i, n in enumerate(numbers)}
    drawn = teach.reduced(given)
    assert closure(drawn) == closure(given)
    for n, direct in drawn.items():
        for m in direct:  # each is needed
            assert closure({**drawn, n: [k for k in direct if k != m]}) != closure(given)
    at = teach.places(drawn)
    assert len(set(at.values())) == len(at)
    assert all(at[m][0] < at[n][0] for n, direct in drawn.items() for m in direct)


def test_needs_are_read_from_the_fragments():
    texts = {"01_a": FRAGMENT.format(needs="nothing"), "03_c": FRAGMENT.format(needs="01, 02")}
    assert teach.needs(["01_a", "02_b", "03_c"], texts) == {"01": [], "02": [], "03": ["01", "02"]}
    with pytest.raises(ValueError, match="01_a.md needs 03, which does not come before it"):
        teach.needs(["01_a", "03_c"], {"01_a": FRAGMENT.format(needs="03")})
    with pytest.raises(ValueError, match="01_a.md needs a line such as"):
        teach.needs(["01_a"], {"01_a": "### Before"})


def test_the_page_for_lecturers_has_clock_graph_and_advice(tmp_path):
    (tmp_path / f"{NAME}.md").write_text(FRAGMENT.format(needs="20"))
    plain = new_notebook(cells=[new_markdown_cell("# 20 Plain & simple")])
    text = teach.page([("20_plain", plain), (NAME, fixture())], tmp_path)
    assert "| 0 | 6 | Alpha |\n| 6 | 4 | Beta |\n| 10 | 1 | Summary |" in text
    assert "For home: For home." in text
    assert f"[21 The fixture]({NAME}.ipynb) | 11 min | 2, 13 min | [20](20_plain.ipynb) |" in text
    assert ":::{rubric} Ask" in text and "Why?" in text and "{{" not in text
    svg = re.search(r"<svg.*</svg>", text)[0]
    assert "21 builds on 20" in svg and "Plain &amp; simple" in svg and svg.count("<rect") == 2


def test_an_afternoon_is_four_hours_and_names_chapters():
    assert sum(length for _, length, _ in teach.AFTERNOON) == 240
    numbers = {path.stem[:2] for path in chapters()}
    assert {n for n, _, _ in teach.AFTERNOON if n} | set(teach.DESK) <= numbers


def test_every_fragment_belongs_to_a_chapter():
    stems = [path.stem for path in chapters()]
    texts = {p.stem: p.read_text(encoding="utf-8") for p in teach.FRAGMENTS.glob("*.md")}
    assert set(texts) <= set(stems)
    teach.needs(stems, texts)


def test_without_a_browser_the_pages_stand_and_a_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("MATHKIT_BROWSER", raising=False)
    monkeypatch.setattr(printer, "BROWSERS", ("no-such-browser",))
    page, said = tmp_path / "a.html", []
    page.write_text("<p>A page.</p>")
    press.printed([page, page], said.append)
    assert len(said) == 1 and "no Chromium or Chrome found" in said[0] and "print it" in said[0]
    monkeypatch.setenv("MATHKIT_BROWSER", shutil.which("false") or str(tmp_path))
    press.printed([page], said.append)
    assert "no PDF" in said[1] and not page.with_suffix(".pdf").exists()


@cache
def built():
    """The fixture's deck and handout, built once for all tests."""
    page = press.decks([(NAME, fixture())], {NAME: "22 The next"}, BUILD / "quick-deck")[0]
    return page, press.handouts([(NAME, fixture())], BUILD / "quick-handout")


@pytest.fixture
def made(capfd):
    with capfd.disabled():
        return built()


@pytest.fixture
def browser():
    with browsing(viewport={"width": 1280, "height": 720}) as context:
        yield context


def opened(browser, page):
    """The deck in a tab, settled, and what it complained of."""
    tab, complaints = browser.new_page(), []
    tab.on("console", lambda m: m.type == "error" and complaints.append(m.text))
    tab.on("pageerror", lambda e: complaints.append(str(e)))
    tab.on("requestfailed", lambda r: complaints.append(f"could not load {r.url}"))
    tab.on(
        "request",
        lambda r: urlsplit(r.url).scheme in ("file", "data", "blob") or complaints.append(r.url),
    )
    tab.goto(page.as_uri())
    tab.wait_for_selector("body[data-fitted]")
    return tab, complaints


@pytest.mark.notebook
def test_decks_and_handouts_fetch_nothing(made):
    page, sheets = made
    for path in (page, *sheets):
        seen = scan.Page(path.read_text(encoding="utf-8"))
        assert seen.fetched
        assert [u for u in seen.fetched if scan.fault(path.parent, u, path.parent)] == []


OVER = """() => [...document.querySelectorAll('.slides section[data-kind]')].map(s => [
  s.querySelector('h1, h2').textContent, s.scrollHeight - s.clientHeight,
  s.scrollWidth - s.clientWidth]).filter(([, down, right]) => down > 1 || right > 1)"""
SMALL = """() => [...document.querySelectorAll('.slides li, .slides pre')].filter(
  e => parseFloat(getComputedStyle(e).fontSize) < (e.tagName == 'LI' ? 28 : 20)
).map(e => e.textContent)"""


@pytest.mark.browser
def test_every_slide_fits_and_is_large_enough(made, browser):
    tab, complaints = opened(browser, made[0])
    assert complaints == []
    assert tab.evaluate(OVER) == [] and tab.evaluate(SMALL) == []
    assert tab.evaluate("Reveal.getTotalSlides()") == len(deck.slides(fixture(), NAME))
    tab.evaluate(  # the check sees a slide that does not fit
        "document.querySelector('.slides ul').insertAdjacentHTML('beforeend',"
        " '<li>line</li>'.repeat(40))"
    )
    assert tab.evaluate(OVER)


@pytest.mark.browser
def test_every_chapter_fits_its_slides(browser, capfd):
    with capfd.disabled():
        books = [(path.stem, read(path)) for path in chapters()]
        made = press.decks(books, build.following(), BUILD / "stored-deck")
    for page in made:
        tab, complaints = opened(browser, page)
        assert [complaints, tab.evaluate(OVER), tab.evaluate(SMALL)] == [[], [], []], page.stem
        tab.close()


@pytest.mark.browser
def test_keys_turn_slides_but_not_under_a_slider(made, browser):
    tab, _ = opened(browser, made[0])
    at = lambda: tab.evaluate("Reveal.getIndices().h")  # noqa: E731
    tab.keyboard.press("ArrowRight")
    assert at() == 1
    tab.evaluate("Reveal.slide(4)")
    slider = tab.locator("input[type=range]")
    slider.focus()
    for key, value in (("ArrowRight", "6"), ("ArrowLeft", "5"), ("End", "9")):
        tab.keyboard.press(key)
        assert at() == 4 and slider.input_value() == value
    tab.keyboard.press("PageDown")  # a clicker's key
    assert at() == 5 and slider.input_value() == "9"


@pytest.mark.browser
def test_code_is_hidden_behind_a_key_and_help_lists_it(made, browser):
    tab, _ = opened(browser, made[0])
    tab.evaluate("Reveal.slide(2)")
    code = tab.locator("section.present .code").last
    assert not code.is_visible()
    tab.keyboard.press("c")
    assert code.is_visible() and "draw(1)" in code.inner_text()
    tab.keyboard.press("c")
    assert not code.is_visible()
    tab.keyboard.press("?")
    assert "Show or hide the code" in tab.locator(".r-overlay").inner_text()


@pytest.mark.browser
def test_the_notes_open_in_a_window_of_their_own(made, browser):
    tab, complaints = opened(browser, made[0])
    tab.evaluate("Reveal.slide(1)")
    with browser.expect_page() as window:
        tab.keyboard.press("s")
    notes = window.value.locator(".speaker-controls-notes .value")
    notes.get_by_text("Minutes 0 to 6 of 11").wait_for()
    assert "In between." in notes.inner_text() and complaints == []


def pages_of(page, query=""):
    """How many sheets a printed page has, and width and height of the first in points."""
    raw = printer.pdf(page.as_uri() + query)
    assert raw.startswith(b"%PDF")
    box = re.search(rb"/MediaBox ?\[([^\]]*)\]", raw)[1]
    x, y, right, top = map(float, box.split())
    return len(re.findall(rb"/Type ?/Page\b", raw)), right - x, top - y


@pytest.mark.browser
def test_a_deck_prints_one_page_a_slide(made, browser):
    count, width, height = pages_of(made[0], "?print-pdf")
    assert count == len(deck.slides(fixture(), NAME))
    assert width / height == pytest.approx(16 / 9, rel=0.01)


@pytest.mark.browser
def test_handouts_print_on_a4(made, browser):
    for page in made[1]:
        count, *size = pages_of(page)
        assert count >= 1 and size == pytest.approx((595, 842), abs=1)

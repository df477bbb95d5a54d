"""Every chapter runs in quick mode, and the web book made of them opens from disk, fetches nothing
and works: read page by page, and in a browser. One file, so that they run once."""

import base64
import contextlib
import hashlib
import html
import importlib
import inspect
import json
import os
import re
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from solving import once, ran

import mathkit as mk
from book import build, pages, printer, scan
from book.execute import graft, read
from book.paths import BUILD, REFERENCE, VENDOR, chapters
from mathkit.draw import widgets

READY = """async () => {
  await document.fonts.ready;
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
}"""
UNTYPESET = """() => [...document.querySelectorAll('.math')].filter(
  e => !e.querySelector('mjx-container') || e.querySelector('mjx-merror, [data-mjx-error]')
).map(e => e.textContent.slice(0, 80))"""
UNLOADED = """async () => {
  const images = [...document.images];
  images.forEach(i => i.loading = 'eager');
  await Promise.allSettled(images.map(i => i.decode()));
  return images.filter(i => !i.naturalWidth).map(i => i.src.slice(0, 200));
}"""
WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
PICTURE = "i => document.querySelectorAll('.flipbook img')[i].src"
TURNED = f"([i, before]) => ({PICTURE})(i) !== before"
BOLD = "() => document.querySelectorAll('h1').length"
CUT = """() => [...document.querySelectorAll('div.cell_input pre')].filter(
  p => p.scrollWidth > p.clientWidth + 1).map(p => p.textContent.slice(0, 80))"""
PRINTED = """() => ['.skip-to-content', '.flipbook input', '.code-switch', 'button'].filter(
  q => [...document.querySelectorAll(q)].some(e => getComputedStyle(e).display !== 'none'))"""


@cache
def built() -> Path:
    """The book from the notebooks executed in quick mode, built once for all tests."""
    outcomes = once()
    build.failures(outcomes.values())
    books = [(path.stem, graft(read(path), ran(outcomes[path.stem]))) for path in chapters()]
    return build.html(books, BUILD / "quick-html").parent


@pytest.fixture
def book(capfd):
    with capfd.disabled():
        return built()


def page(tmp_path, body):
    (tmp_path / "index.html").write_text(f"<html><body>{body}</body></html>")
    return scan.faults(tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        '<script src="https://cdn.example.org/a.js"></script>',
        '<link rel="stylesheet" href="//cdn.example.org/a.css">',
        '<img srcset="a.png 1x, https://example.org/b.png 2x">',
        "<style>@import 'https://example.org/a.css';</style>",
        '<p style="background: url(https://example.org/a.png)">text</p>',
        "<script>import('https://example.org/a.js')</script>",
        '<script type="module">import x from "https://example.org/a.mjs"</script>',
        '<svg><use href="https://example.org/a.svg#b"/></svg>',
        '<img src="/elsewhere/a.png">',
        '<img src="../a.png">',
        '<a href="no_such_page.html">next</a>',
    ],
)
def test_the_scan_finds_a_planted_fault(tmp_path, body):
    (tmp_path / "a.png").write_bytes(b"")
    assert len(page(tmp_path, body)) == 1


def test_the_scan_finds_a_planted_font(tmp_path):
    (tmp_path / "a.css").write_text("@font-face { src: url('https://example.org/a.woff2') }")
    assert len(scan.faults(tmp_path)) == 1


def test_the_scan_passes_what_is_allowed(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    link = '<a href="https://arxiv.org/abs/2302.12469">a paper</a><a href="#here">here</a>'
    state = '<script type="application/json">{"url": "import(\'https://example.org\')"}</script>'
    assert page(tmp_path, f'{link}{state}<img src="a.png"><img src="data:image/png;base64,">') == []


def test_vendored_files_are_the_published_ones():
    listed = json.loads((VENDOR / "vendor.json").read_text())["files"]
    for row in listed:
        assert hashlib.sha256((VENDOR / row["file"]).read_bytes()).hexdigest() == row["sha256"]
        assert (VENDOR / row["licence_text"]).exists() and row["licence"] and row["version"]
    known = {row["file"] for row in listed} | {"vendor.json"}
    others = [p.name for p in VENDOR.iterdir() if p.name not in known and "LICENSE" not in p.name]
    assert others == []


def test_story_is_framed_and_headings_stay_outside():
    told = pages.told("# Title\n\nOnce.\n\n```\n# no heading\n```\n\n## Part\n\nTwice.")
    assert re.findall(r"^#+ \w+$", re.sub(r":::+.*?:::+", "", told, flags=re.S), re.M) == [
        "# Title",
        "## Part",
    ]
    assert told.count("{container} story") == 2


@pytest.mark.parametrize(
    "block",
    [
        "```\n# no\n```",
        "````\n```\n# no\n```\n````",
        "~~~\n```\n# no\n~~~",
        "```a\n```b\n# no\n```",
    ],
)
def test_code_has_no_headings_whatever_fences_stand_in_it(block):
    """By CommonMark a fence ends at one of its own kind, as long and bare."""
    assert pages.split_headings(f"# one\n{block}\n# two") == ["# one", block, "# two"]
    assert pages.split_headings("```code``` in a line\n# one")[1:] == ["# one"]


@pytest.mark.parametrize(("cut", "gone"), [("math", "Once"), ("story", "Proof")])
def test_a_cut_leaves_the_other_kind_out(cut, gone):
    story, math = {"tags": ["story"]}, {"tags": ["math"]}
    cells = [
        new_markdown_cell("# Title\n\nOnce.", metadata=story),
        new_markdown_cell("Proof.", metadata=math),
        new_code_cell("shared = 1", outputs=[new_output("stream", name="stdout", text="x")]),
    ]
    text = "\n".join(cell.source for cell in pages.chapter(new_notebook(cells=cells), cut).cells)
    assert gone not in text and "# Title" in text and "shared = 1" in text


def cut_book(cut):
    story, math = {"tags": ["story"]}, {"tags": ["math"]}
    shown = [new_output("stream", name="stdout", text="x")]
    cells = [
        new_markdown_cell("# Title\n\nA strip."),
        new_code_cell("import os"),
        new_markdown_cell("## Proof\n\nP.", metadata=math),
        new_code_cell("m = 1", metadata=math, outputs=shown),
        new_markdown_cell("## Interlude\n\nOnce.", metadata=story),
        new_markdown_cell("## Deep\n\nD.", metadata=math),
        new_markdown_cell("Beneath it, for all."),
        new_code_cell("draw()", outputs=shown),
        new_markdown_cell("## Summary\n\n* S.\n\n## Exercises\n\nReplace."),
        new_markdown_cell("### Exercise 1 (2 minutes): one\n\n```python\n# no heading\n```"),
        new_code_cell("answer_1 = ...", outputs=shown),
        new_markdown_cell("## References\n\n* R."),
    ]
    return pages.chapter(new_notebook(cells=cells), cut).cells


def test_the_story_cut_reads_as_a_whole():
    """No bare headings, no exercises, code only where it shows something, and that folded."""
    cells = cut_book("story")
    heads = re.findall(r"^#+ (\w+)", "\n".join(c.source for c in cells), re.M)
    assert heads == ["Title", "Interlude", "Deep", "Summary", "References"]
    code = [c for c in cells if c.cell_type == "code"]
    assert [c.source for c in code] == ["draw()"] and "hide-input" in code[0].metadata["tags"]


def test_the_mathematics_cut_reads_as_a_whole():
    text = "\n".join(cell.source for cell in cut_book("math"))
    assert "Interlude" not in text and "Once" not in text
    for kept in ("import os", "P.", "m = 1", "D.", "Exercise 1", "answer_1", "* R."):
        assert kept in text


def test_the_whole_book_keeps_every_cell():
    assert len(cut_book(None)) == 12


def test_folded_code_and_the_chosen_picture():
    shown = [[new_output("display_data", data={"image/png": data})] for data in ("QUFB", "QkJC")]
    cells = [
        new_markdown_cell(
            "# 07 T\n\n| case file | time |\n|---|---|\n| 07 of 14 | 50 min; quick |"
        ),
        new_code_cell("import os", metadata={"tags": ["fold"]}, outputs=shown[0]),
        new_code_cell("draw()", metadata={"tags": ["card"]}, outputs=shown[1]),
    ]
    nb = new_notebook(cells=cells)
    assert pages.minutes(nb, "07") == 50 and pages.thumbnail(nb) == b"BBB"
    cells[2].metadata["tags"] = []
    assert pages.thumbnail(nb) == b"AAA"
    folded = ["hide-input" in c.metadata.get("tags", []) for c in pages.chapter(nb).cells]
    assert folded == [False, True, False]
    with pytest.raises(ValueError, match="must say its minutes"):
        pages.minutes(new_notebook(cells=[new_markdown_cell("# 07 T")]), "07")


def test_the_front_page_counts_and_leaves_out_what_is_not_there():
    template = "{{if there}} * A.\n{{if not_there}} * B.\n{{time}}, {{time 01 02}}, {{time 02}}.\n"
    needed = {"01_a": 50, "02_b": 60, "03_c": 100}
    page = pages.front(template, needed, [], ["there"])
    assert page == "* A.\n3.5 hours, 110 minutes, 60 minutes.\n"


@pytest.mark.long
def test_each_picture_gets_its_own_words(tmp_path):
    """Two pictures and a flip book from one cell; words with quotes and backslashes stay words."""
    pixel = base64.b64encode(widgets.frame(torch.zeros(3, 2, 2))).decode()
    flip = widgets.flipbook(torch.zeros(2, 3, 2, 2), describe="Own words.")._repr_html_()
    data = [{"image/png": pixel}, {"text/html": flip, "image/png": pixel}, {"image/png": pixel}]
    alt = ['A "first" one', r"It \\1 <moves>", "The last"]
    outputs = [new_output("display_data", data=each) for each in data]
    case = "# 91 T\n\n| case file | time |\n|---|---|\n| 01 | 5 min |"
    nb = new_notebook(cells=[new_markdown_cell(case), new_code_cell("x", outputs=outputs)])
    nb.cells[1].metadata["alt"] = alt
    text = build.html([("91_t", nb)], tmp_path / "html").parent.joinpath("91_t.html").read_text()
    said = [
        html.unescape(words)
        for _, words in re.findall(r"""<img alt=(["'])(.*?)\1 src="_images""", text)
    ]
    assert said == [alt[0], alt[2]]
    assert f'aria-label="{html.escape(alt[1])}"' in text
    assert 'alt="Own words. frame 0"' in text


def test_the_lab_never_overwrites(tmp_path, monkeypatch):
    chapter = tmp_path / "01_first.ipynb"
    chapter.write_text("theirs")
    opened = []
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "chapters", lambda: [chapter])
    monkeypatch.setattr(build.subprocess, "run", opened.append)
    build.lab()
    copy = tmp_path / "lab" / chapter.name
    assert copy.read_text() == "theirs" and opened[0][-1] == str(copy.parent)
    copy.write_text("mine")
    build.lab()
    assert copy.read_text() == "mine"


def test_no_screen_no_browser(monkeypatch, capsys):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(build.webbrowser, "open", lambda uri: pytest.fail("opened a browser"))
    build.show(Path("/somewhere/index.html"))
    assert capsys.readouterr().out == "The book: /somewhere/index.html\n"


@pytest.mark.notebook
@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_a_chapter_runs_quick_and_its_exercises_can_be_solved_and_failed(path, capfd):
    with capfd.disabled():
        error = once()[path.stem].error
    if error:
        pytest.fail(error, pytrace=False)


@pytest.mark.notebook
def test_nothing_is_fetched_and_no_link_is_broken(book):
    assert scan.faults(book) == []


def misquoted(page):
    """Words of a page that begin with a closing quotation mark, or end with an opening one."""
    body = re.sub(r"<(script|style|pre)\b.*?</\1>", "", page, flags=re.S)
    words = html.unescape(re.sub(r"<[^>]+>", "", body)).split()
    return [w for w in words if re.match(r"\(?\u201d\w", w) or re.search(r"\w\u201c$", w)]


def test_a_quotation_mark_that_turns_its_back_is_noticed():
    said = "<p>\u201cYes,\u201d she said. <i>\u201dNo\u201d</i>, (\u201dmaybe\u201c</p>"
    page = f"{said}<pre>\u201dx</pre>"
    assert misquoted(page) == ["\u201dNo\u201d,", "(\u201dmaybe\u201c"]


@pytest.mark.notebook
def test_quotation_marks_stand_the_right_way_round(book):
    pages = {path.name: misquoted(path.read_text(encoding="utf-8")) for path in book.glob("*.html")}
    assert {name: found for name, found in pages.items() if found} == {}


@pytest.mark.notebook
def test_the_front_page_lists_every_chapter(book):
    seen = scan.Page((book / "index.html").read_text(encoding="utf-8")).linked
    assert {f"{name}.html" for name in once()} <= set(seen)


def browser_path() -> str:
    """A browser that can be driven; without one CI fails and any other machine skips."""
    found = printer.browser() or ""
    if not found and os.environ.get("CI"):
        pytest.fail("CI needs a browser for this test: apt-get install chromium", pytrace=False)
    if not found:
        pytest.skip("no chromium or chrome found: the book was not opened in a real browser")
    return found


def test_ci_demands_a_browser_and_others_are_told(monkeypatch):
    monkeypatch.delenv("MATHKIT_BROWSER", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI needs a browser"):
        browser_path()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="not opened in a real browser"):
        browser_path()


def watch(tab, complaints: list[str]) -> None:
    """Collect every request that leaves the disk and every error the page reports."""

    def asked(request):
        if urlsplit(request.url).scheme not in ("file", "data", "blob"):
            complaints.append(f"asked the network for {request.url}")

    tab.on("request", asked)
    tab.on("requestfailed", lambda r: complaints.append(f"could not load {unquote(r.url)}"))
    tab.on("pageerror", lambda e: complaints.append(f"script error: {e}"))
    tab.on("console", lambda m: m.type == "error" and complaints.append(f"console: {m.text}"))


def look(tab, path: Path) -> list[str]:
    """What is wrong with one page, seen on a desk, on a phone and on paper."""
    complaints: list[str] = []
    watch(tab, complaints)
    tab.set_viewport_size({"width": 1440, "height": 900})
    tab.goto(path.as_uri())
    tab.evaluate(READY)
    complaints += [f"maths not typeset: {text}" for text in tab.evaluate(UNTYPESET)]
    complaints += [f"image not loaded: {source}" for source in tab.evaluate(UNLOADED)]
    complaints += [f"a flip book stands still: {number}" for number in stuck(tab)]
    complaints += [f"code is cut: {text}" for text in tab.evaluate(CUT)]
    if (titles := tab.evaluate(BOLD)) != 1:
        complaints.append(f"{titles} main headings")
    tab.set_viewport_size({"width": 390, "height": 844})
    if tab.evaluate(WIDER) > 0:
        complaints.append("wider than a phone's screen")
    tab.emulate_media(media="print")
    complaints += [f"printed: {what}" for what in tab.evaluate(PRINTED)]
    return [f"{path.name}: {complaint}" for complaint in complaints]


def stuck(tab) -> list[int]:
    """The flip books whose picture no arrow key changes, with no kernel behind the page."""
    sliders = tab.locator(".flipbook input")
    return [i for i in range(sliders.count()) if not turns(tab, i, sliders.nth(i))]


def turns(tab, i: int, slider) -> bool:
    before = tab.evaluate(PICTURE, i)
    for key in ("ArrowRight", "ArrowLeft"):
        slider.press(key)
        with contextlib.suppress(Exception):
            tab.wait_for_function(TURNED, arg=[i, before], timeout=1000)
            return True
    return False


@contextlib.contextmanager
def browsing(**settings):
    """A browser without a network, in which pages are opened."""
    executable = browser_path()
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=executable, args=["--disable-gpu"])
        context = browser.new_context(offline=True, **settings)
        context.set_default_timeout(180_000)  # a busy machine is no fault of the book
        yield context
        browser.close()


def each_page(book, look, names=".*", **settings) -> list[str]:
    found, paths = [], [p for p in sorted(book.glob("*.html")) if re.fullmatch(names, p.stem)]
    assert len(paths) > 5
    with browsing(**settings) as context:
        for path in paths:
            tab = context.new_page()
            found += look(tab, path)
            tab.close()
    return found


@pytest.mark.browser
def test_every_page_works_in_a_browser_from_disk(book):
    assert each_page(book, look) == []


OF_EACH_KIND = r"index|06_\w+|laboratory|teaching|notation|make_your_own_clip|linear|search"


@pytest.mark.browser
@pytest.mark.parametrize(
    "scheme, names",
    [("light", OF_EACH_KIND)]
    + [pytest.param(scheme, ".*", marks=pytest.mark.slow) for scheme in ("light", "dark")],
)
def test_every_page_can_be_read_by_everybody(book, scheme, names):
    """axe-core's rules, by day and by night, on a phone, where most things scroll."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def examined(tab, path):
        tab.set_viewport_size({"width": 390, "height": 844})
        tab.goto(path.as_uri())
        tab.evaluate(READY)
        broken = axe.run(tab).response["violations"]
        return [f"{path.name}: {rule['id']}, {rule['nodes'][0]['html'][:200]}" for rule in broken]

    assert each_page(book, examined, names, color_scheme=scheme) == []


@pytest.mark.browser
def test_the_switch_for_code_is_remembered(book):
    with browsing() as context:
        tab = context.new_page()
        code = tab.locator("div.cell_input").first
        for chapter in chapters()[:2]:
            tab.goto((book / f"{chapter.stem}.html").as_uri())
            if chapter == chapters()[0]:
                assert tab.get_by_role("button", name="Hide code").get_attribute(
                    "aria-pressed"
                ) == ("false")
                tab.get_by_role("button", name="Hide code").click()
            assert not code.is_visible()
        tab.get_by_role("button", name="Show all code").click()
        assert code.is_visible()


def listed() -> list[str]:
    """The public names, as the reference's pages list them."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(REFERENCE.glob("*.md"))]
    entry = re.compile(r"^\.\. (?:autofunction|autoclass|py:data):: (\S+)$", re.M)
    return [name for text in texts for name in entry.findall(text)]


def test_the_reference_is_six_pages_of_at_most_95_names():
    names = listed()
    assert len(list(REFERENCE.glob("*.md"))) == 6
    assert len(names) == len(set(names)) <= 95


def test_the_reference_lists_what_is_there_and_no_helper():
    for name in listed():
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last), name
        assert not any(part.startswith("_") for part in name.split(".")), name


def missing(door: Iterable[str], names: Iterable[str]) -> set[str]:
    """The names of the door without an entry; of a module, an entry of something in it."""
    values = {name: getattr(mk, name) for name in door}
    wanted = {
        name: x.__name__ if inspect.ismodule(x) else f"mathkit.{name}" for name, x in values.items()
    }
    have = {*names, *(name.rpartition(".")[0] for name in names)}
    return {name for name, place in wanted.items() if place not in have}


def test_the_reference_lists_every_name_of_the_door():
    names = listed()
    assert missing(mk.__all__, names) == set()
    assert missing(mk.__all__, [n for n in names if n != "mathkit.svd"]) == {"svd"}
    assert missing(mk.__all__, [n for n in names if "puppets" not in n]) == {"puppets"}


@pytest.mark.notebook
def test_code_in_the_chapters_leads_to_the_reference(book):
    for path in chapters():
        text = (book / f"{path.stem}.html").read_text(encoding="utf-8")
        links = re.findall(r'<a class="sphinx-codeautolink-a" href="([^"#]+)#([^"]+)"', text)
        assert len(links) > 20, path.stem
        for page, anchor in set(links):
            assert f'id="{anchor}"' in (book / page).read_text(encoding="utf-8"), (page, anchor)


@pytest.mark.parametrize(("cut", "there"), [(None, True), ("math", True), ("story", False)])
def test_the_back_matter_belongs_to_the_mathematics(tmp_path, cut, there):
    build.sources([], tmp_path, cut)
    names = {path.stem for path in (tmp_path / "pages").glob("*.md")}
    assert ({"notation", "reference"} <= names) == there

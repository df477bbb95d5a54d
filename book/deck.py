"""A chapter as the slides of a lecture: marked sentences become bullets, the rest speaker notes.

What a notebook may hold for it: `<span class="say">a sentence</span>` in its prose, the tag
`slide` on a markdown cell (shown as it is) or a code cell (its output is shown), and `minutes` in
the metadata of a heading's cell; 0 puts the section after the end, for questions and for home.
"""

import base64
import copy
import html
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from book import pages
from book.doctree import PICTURES as MOVING
from mathkit.draw.moving import size

SAY = re.compile(r'<span class="say">(.*?)</span>', re.S)
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:)[^)\s]*\)")
SENTENCE = re.compile(r"(?:[^.!?]|[.!?](?!\s|$))+[.!?]")
SLIDE = "slide"
HERE = "\N{BLACK RIGHT-POINTING SMALL TRIANGLE}"  # in the notes, where a bullet is said
ROOM = 4  # bullets on a slide
SHORT = 25  # words that take the room of a bullet
SCREEN, USUAL = 2.0, 1.5  # width over height: of the room for pictures, of a usual picture
LETTERS = 62  # of a printed line in large type
LINES = 3  # of print that fit beneath a picture
# MathJax says each formula twice, once for screen readers; the notes window lacks its styles.
ONCE = "<style>.speaker-controls-notes mjx-assistive-mml { display: none }</style>"
KEYS = (
    "Keys: arrows, page keys or space turn the slide; s opens these notes; c shows the code; ? all."
)
ASIDE = "She computes on this machine. Click beside the frame, and the keys turn slides again."
LICENCE = "Treating ALICE, by the mathkit authors. Text and figures CC BY 4.0, code MIT."


@dataclass
class Slide:
    """One slide: Markdown for the wall (`body`) and for the lecturer (`notes`)."""

    title: str
    body: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kinds: tuple[str, ...] = ("points",)
    room: int = ROOM
    seconds: int = 0


@dataclass
class Part:
    """The slides between a heading with `minutes` and the next; None: no heading had any yet."""

    title: str
    minutes: int | None
    slides: list[Slide] = field(default_factory=list)


def plain(text: str) -> str:
    """Markdown whose links inside the book are words: a deck stands alone."""
    return LINK.sub(r"\1", pages.LABORATORY.sub(r"\2", text))


def said(text: str) -> tuple[list[str], str]:
    """The marked sentences of a piece of prose, and what is left of it."""
    points = [" ".join(point.split()) for point in SAY.findall(text)]
    points = [point[:1].upper() + point[1:] for point in points]
    rest = SAY.sub(HERE, text)
    blocks = (block.strip("\n") for block in rest.split("\n\n"))
    return points, "\n\n".join(block for block in blocks if re.search(r"\w", block))


def pictures(cell: Any) -> list[str]:
    """What a cell shows, as HTML: moving pages as they are, pictures by their alt texts.

    Tables have none, so that a text stays with its own picture.
    """
    alts, found = iter(cell.metadata.get("alt", [])), []
    for data in (output.get("data", {}) for output in cell.outputs):
        if "image/png" not in data and "text/html" not in data and "image/svg+xml" not in data:
            continue
        page = data.get("text/html", "")
        pictured = not page or any(kind in page for kind in MOVING)
        alt = html.escape(next(alts, ""), quote=True) if pictured else ""
        if page:
            found.append(f'<div class="page">{page}</div>')
        elif "image/svg+xml" in data:
            found.append(data["image/svg+xml"])
        else:
            png = data["image/png"].replace("\n", "")
            found.append(f'<img alt="{alt}" src="data:image/png;base64,{png}">')
    return found


def printed(cell: Any) -> str:
    """What a cell prints, and the text of results that have no picture."""
    results = (o.get("data", {}) for o in cell.outputs)
    texts = [o["text"] for o in cell.outputs if o.output_type == "stream"]
    texts += [d["text/plain"] for d in results if set(d) == {"text/plain"}]
    return "".join(text if text.endswith("\n") else f"{text}\n" for text in texts).strip("\n")


def gallery(figures: list[str]) -> str:
    """Pictures side by side or one above the other, whichever shows them larger."""
    grid = f"grid-template-columns: repeat({columns(figures)}, minmax(0, 1fr))"
    return f'<div class="figures" style="{grid}">{"".join(figures)}</div>'


def coded(source: str) -> str:
    """Code as HTML, coloured; the key c shows it."""
    shown = highlight(source, PythonLexer(), HtmlFormatter(noclasses=True, nobackground=True))
    return f'<div class="code" role="region" aria-label="The code" tabindex="0">{shown}</div>'


def shown(cell: Any, title: str) -> Slide:
    """The slide of one code cell: pictures as large as they go, a few printed lines beneath."""
    figures, text, notes = pictures(cell), printed(cell), []
    lines = len(text.splitlines())
    if figures and lines > LINES:
        notes, text = [f"It prints:\n\n```text\n{text}\n```"], ""
    made = [gallery(figures)] if figures else []
    small = " small" if max(map(len, text.splitlines()), default=0) > LETTERS else ""
    made += [f'<pre class="printed{small}">{html.escape(text)}</pre>'] if text else []
    body = raw("\n".join([*made, coded(cell.source)]))
    wide = len(figures) == 1 and aspect(figures[0]) >= 2
    room = 1 + wide if figures else max(0, ROOM - lines)
    return Slide(title, [body], notes, ("picture" if figures else "print", *tone(cell)), room)


def aspect(figure: str) -> float:
    """Width over height of a picture; of anything else, that of a usual one."""
    found = re.search(r"data:image/png;base64,(\S{44})", figure)
    if found is None:
        return USUAL
    width, height = size(base64.b64decode(found[1]))
    return width / height


def columns(figures: list[str]) -> int:
    """In how many columns pictures are largest on a slide of 16 : 9."""
    widest, many = max(map(aspect, figures)), len(figures)
    return max(range(1, many + 1), key=lambda c: min(SCREEN / (c * widest), 1 / -(-many // c)))


def tone(cell: Any) -> tuple[str, ...]:
    """What a slide of this cell is besides its kind: the story is shown on tape."""
    return (pages.STORY,) if pages.STORY in pages.tags(cell) else ()


def weight(block: str) -> int:
    """How much of a slide's room a block takes: a displayed formula half, long words more."""
    return min(ROOM, ROOM // 2 + len(block.split()) // SHORT)


def welcomes(slide: Slide, blocks: list[tuple[str, int]], kinds: tuple[str, ...]) -> bool:
    """Whether the next of the blocks has room on a slide; what a cell shows takes all or none."""
    if not slide.body:
        return True
    if slide.kinds == kinds:
        return slide.room >= blocks[0][1]
    return slide.kinds[1:] == kinds[1:] and slide.room >= sum(need for _, need in blocks)


def add(part: Part, blocks: list[tuple[str, int]], rest: str, kinds: tuple[str, ...]) -> None:
    """Blocks, each with the room it needs, on the part's slides; the rest to their notes."""
    first: Slide | None = None
    for i, (text, need) in enumerate(blocks):
        if not welcomes(part.slides[-1], blocks[i:], kinds):
            part.slides.append(Slide(part.slides[-1].title))
        last = part.slides[-1]
        last.kinds = last.kinds if last.body else kinds
        last.body.append(text)
        last.room -= need
        first = first or last
    if rest:
        (first or part.slides[-1]).notes.append(rest)


def marked(nb: Any) -> Any:
    """The notebook as marked; without any mark it shows its pictures, and how sections begin."""
    markdown = [c for c in nb.cells if c.cell_type == "markdown"]
    if any(SLIDE in pages.tags(c) for c in nb.cells) or any(SAY.search(c.source) for c in markdown):
        return nb
    for cell in nb.cells:
        if cell.cell_type == "code" and drawn(cell):
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), SLIDE]
        if cell.cell_type == "markdown":
            cell.source = "\n\n".join(begun(cell.source))
    return nb


def drawn(cell: Any) -> bool:
    """Whether a cell shows a picture; tables, which may be long, are for who marks them."""
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def begun(source: str) -> Iterable[str]:
    """The pieces of a markdown cell; prose that follows a heading begins with a marked sentence."""
    below = False
    for piece in pages.split_headings(source):
        heading = bool(pages.HEADING.match(piece))
        found = SENTENCE.match(piece) if below and not heading else None
        if found and piece[0].isalpha() and "$$" not in found[0]:
            piece = f'<span class="say">{found[0]}</span>{piece[found.end() :]}'
        below = heading
        yield piece


def lecture(nb: Any) -> list[pages.Piece]:
    """The pieces a lecture is made of: exercises and references are for the desk."""
    return pages.without(pages.without(pages.apart(nb.cells), pages.EXERCISES), "## References")


def parts(nb: Any, first: Slide) -> list[Part]:
    """The lecture in the order of the notebook; `first` opens the introduction."""
    made, timed = [Part(first.title, None, [first])], set()
    for cell, text in lecture(nb):
        last, level = made[-1], pages.level((cell, text))
        if level < 7:
            slide = Slide(plain(text.lstrip("# ")), kinds=("points", *tone(cell)))
            length = None if id(cell) in timed else cell.metadata.get("minutes")
            timed.add(id(cell))
            if length is not None and level > 1:
                made.append(Part(slide.title, int(length), [slide]))
                continue
            last.slides.append(slide)
            last.minutes = last.minutes if length is None else int(length)
        elif cell.cell_type == "markdown":
            told(last, cell, text, introduction=len(made) == 1)
        elif SLIDE in pages.tags(cell):
            last.slides.append(shown(cell, last.slides[-1].title))
    return [Part(part.title, part.minutes, settled(part)) for part in made]


def told(part: Part, cell: Any, text: str, introduction: bool) -> None:
    """One piece of prose onto the part's slides and into their notes."""
    kinds = ("points", *tone(cell))
    if SLIDE in pages.tags(cell):
        block = plain(SAY.sub(r"\1", text))
        return add(part, [(block, weight(block))], "", kinds)
    if introduction:  # its case file is for readers
        text = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    points, rest = said(text)
    add(part, [(f"* {plain(point)}", 1) for point in points], plain(rest), kinds)
    for at, _ in pages.LABORATORY.findall(text):
        part.slides += [visit(at), Slide(part.slides[-1].title)]


def visit(at: str) -> Slide:
    """The laboratory on a slide; its page lies beside the deck."""
    address = f"laboratory.html#{at}"
    frame = f'<iframe data-src="{address}" title="The laboratory"></iframe>'
    link = f'<p>If the frame stays empty: <a href="{address}">laboratory.html</a></p>'
    return Slide("The laboratory", [raw(frame + link)], [ASIDE], ("laboratory",), 0)


def settled(part: Part) -> list[Slide]:
    """The part's slides without empty ones, whose notes go to a neighbour of the part; a part
    with nothing to show keeps its heading alone."""
    kept: list[Slide] = []
    waiting: list[str] = []
    for slide in part.slides:
        if not slide.body:
            waiting += slide.notes
            continue
        slide.notes, waiting = [*waiting, *slide.notes], []
        kept.append(slide)
    if not kept and part.minutes:
        kept = [replace(part.slides[0], kinds=("heading",), notes=[])]
    if kept:
        kept[-1].notes += waiting
    return kept


def clocked(made: list[Part]) -> list[Part]:
    """The parts with the clock of each slide: from when to when its part lasts, and its share."""
    total, start = sum(part.minutes or 0 for part in made), 0
    for part in made:
        end, many = start + (part.minutes or 0), len(part.slides)
        for i, slide in enumerate(part.slides, 1):
            if part.minutes:
                clock = f"Minutes {start} to {end} of {total}; slide {i} of {many} in this part."
                slide.seconds = round(60 * part.minutes / many)
                slide.notes.insert(0, f"**{clock}**")
            elif total and part.minutes == 0:
                slide.notes.insert(
                    0, f"**Outside the {total} minutes: for questions, or for home.**"
                )
                slide.kinds = (*slide.kinds, "home")
        start = end
    return made


def slides(nb: Any, name: str, after: str = "") -> list[Slide]:
    """The whole deck in order: title, lecture, end, and what is left for home.

    Args:
        nb: the notebook, with outputs.
        name: its file name without the ending.
        after: the title of the chapter that follows.
    """
    nb = marked(copy.deepcopy(nb))
    made = clocked(parts(nb, opening(nb, name)))
    lesson = [slide for part in made if part.minutes != 0 for slide in part.slides]
    home = [slide for part in made if part.minutes == 0 for slide in part.slides]
    return [*lesson, ending(nb, after), *home]


def minutes(nb: Any) -> list[tuple[str, int]]:
    """Each timed part of the lecture: its heading, and its minutes; 0 is left for home."""
    made = parts(nb, Slide("Introduction", [""]))
    return [(part.title, part.minutes) for part in made if part.minutes is not None]


def opening(nb: Any, name: str) -> Slide:
    body = [pages.blurb(nb), LICENCE]
    return Slide(pages.heading(nb, name), [b for b in body if b], [KEYS], ("title",), 0)


def ending(nb: Any, after: str) -> Slide:
    """The last slide of the lecture: what to do at the desk, and what comes next."""
    times = [int(m) for cell in nb.cells for _, m, _ in pages.EXERCISE.findall(cell.source)]
    desk = f"{len(times)} exercises on the handout, {sum(times)} minutes" if times else ""
    body = [line for line in (desk, f"Next: {after}" if after else "", LICENCE) if line]
    return Slide("Stop the tape", body, [], ("end",))


def raw(text: str) -> str:
    """HTML that goes through Markdown untouched."""
    return f"````````{{raw}} html\n{text}\n````````"


def markdown(slide: Slide, level: int) -> str:
    """A slide as MyST Markdown for sphinx-revealjs."""
    few = ("few",) if slide.kinds[0] == "points" and slide.room >= ROOM // 2 else ()
    options = [f":data-kind: {' '.join([*slide.kinds, *few])}"]
    options += [f":data-timing: {slide.seconds}"] if slide.seconds else []
    section = "\n".join([":::{revealjs-section}", *options, ":::"])
    notes = (
        [raw(f'<aside class="notes">{ONCE}'), *slide.notes, raw("</aside>")] if slide.notes else []
    )
    return "\n\n".join([f"{'#' * level} {slide.title}", section, *slide.body, *notes])


def page(nb: Any, name: str, after: str = "") -> str:
    """The deck of a chapter as one page for sphinx-revealjs; Args as of `slides`."""
    first, *others = slides(nb, name, after)
    return "\n\n".join([markdown(first, 1), *(markdown(slide, 2) for slide in others)]) + "\n"

"""The page for lecturers: minutes, what needs what, plans, and each chapter's advice."""

import html
import re
from pathlib import Path
from typing import Any

from book import deck, handout, pages
from book.pages import number
from book.paths import BOOK

Book = tuple[str, Any]
Needs = dict[str, list[str]]
Place = tuple[int, float]  # of a box: its row, and the middle of it
FRAGMENTS = BOOK / "teaching"
LINE = re.compile(r"^Needs: *(.*)$", re.M)
WIDE, HIGH, GAP, DOWN = 208, 46, 16, 40  # of a box in the graph, and between boxes
ASIDE = 12  # from the boxes to an arrow that goes around them
DESK = {
    "01": "set-up on every laptop",
    "08": "half-way: what would you switch off instead?",
    "13": "each group defends one row of the table",
    "14": "a model of one's own",
}
AFTERNOON = [
    ("01", 20, "the case: drawings, counting, the strength slider"),
    ("02", 25, "a smile has a direction; the hand that turns"),
    ("", 15, "a break"),
    ("06", 45, "push, pull and the whole Jacobian: the lecture"),
    ("07", 25, "the ruler and the ellipse"),
    ("", 15, "a break"),
    ("12", 45, "push, pull, normalise: the lecture"),
    ("13", 35, "the cure, its dose and its controls"),
    ("", 15, "questions"),
]


def needs(names: list[str], fragments: dict[str, str]) -> Needs:
    """What each chapter builds on, by number, from its line `Needs: 02, 03` or `Needs: nothing`.

    Raises ValueError where the line is missing, or names a chapter that does not come before.
    """
    found: Needs = {}
    for name in names:
        line = LINE.search(fragments.get(name, "Needs: nothing"))
        if line is None:
            raise ValueError(f"{name}.md needs a line such as `Needs: 02, 03` or `Needs: nothing`")
        direct = re.findall(r"\d\d", line[1])
        wrong = [n for n in direct if n not in found]
        if wrong:
            raise ValueError(f"{name}.md needs {', '.join(wrong)}, which does not come before it")
        found[number(name)] = direct
    return found


def reduced(given: Needs) -> Needs:
    """The same without what follows from the rest: the arrows that are drawn."""
    above: dict[str, set[str]] = {}
    for n, direct in given.items():
        above[n] = set(direct).union(*(above[m] for m in direct))
    return {
        n: [m for m in direct if not any(m in above[k] for k in direct)]
        for n, direct in given.items()
    }


def places(given: Needs) -> dict[str, Place]:
    """Row and middle of each box: a row below all that it needs, under the middle of them.

    What needs nothing stands a row above the first that needs it.
    """
    rows: dict[str, int] = {}
    for n, direct in given.items():
        rows[n] = 1 + max((rows[m] for m in direct), default=-1)
    for n in (n for n, direct in given.items() if not direct):
        rows[n] = min((rows[m] for m in given if n in given[m]), default=1) - 1
    middle: dict[str, float] = {}
    for row in range(max(rows.values(), default=-1) + 1):
        mine = [n for n in given if rows[n] == row]
        wish = {n: sum(middle[m] for m in given[n]) / max(1, len(given[n])) for n in mine}
        for i, n in enumerate(sorted(mine, key=lambda n: (wish[n], n))):
            middle[n] = (i - (len(mine) - 1) / 2) * (WIDE + GAP)
    return {n: (rows[n], middle[n]) for n in given}


def graph(given: Needs, titles: dict[str, str]) -> str:
    """The chapters as boxes and what they build on as arrows, as SVG with real text."""
    drawn = reduced(given)
    at = places(drawn)
    side = max((abs(x) for _, x in at.values()), default=0) + WIDE / 2 + ASIDE
    half = side + 4
    tall = (max((row for row, _ in at.values()), default=0) + 1) * (HIGH + DOWN) - DOWN + 8
    said = "; ".join(f"{n} builds on {', '.join(m) or 'nothing'}" for n, m in given.items())
    pairs = [(at[m], at[n]) for n, direct in drawn.items() for m in direct]
    lines = [around(*p, -side) if hidden(*p, at) else arrow(*p) for p in pairs]
    boxes = [box(n, titles.get(n, ""), *at[n]) for n in drawn]
    head = f'<svg class="needs" role="img" viewBox="{-half:g} -4 {2 * half:g} {tall:g}" '
    return f'{head}aria-label="{html.escape(said)}">{"".join(lines + boxes)}</svg>'


def arrow(start: Place, end: Place) -> str:
    """A curve from the foot of one box to the head of another."""
    (upper, x0), (lower, x1) = start, end
    y0, y1 = upper * (HIGH + DOWN) + HIGH, lower * (HIGH + DOWN)
    path = f"M{x0:g} {y0} C{x0:g} {y0 + DOWN} {x1:g} {y1 - DOWN} {x1:g} {y1 - 6}"
    return f'<path class="way" d="{path}"/><path class="tip" d="M{x1:g} {y1}l-5 -8h10z"/>'


def hidden(start: Place, end: Place, at: dict[str, Place]) -> bool:
    """Whether a box of a row between stands on the line from one box to another."""
    (upper, x0), (lower, x1) = start, end
    between = ((row, x) for row, x in at.values() if upper < row < lower)
    return any(
        abs(x0 + (x1 - x0) * (row - upper) / (lower - upper) - x) < WIDE / 2 for row, x in between
    )


def around(start: Place, end: Place, x: float) -> str:
    """A way down the left side, at x, from the flank of one box to the flank of another."""
    (upper, x0), (lower, x1) = start, end
    y0, y1 = (row * (HIGH + DOWN) + HIGH / 2 for row in (upper, lower))
    left0, left1 = x0 - WIDE / 2, x1 - WIDE / 2
    bend = f"Q{x:g} {y0:g} {x:g} {y0 + ASIDE:g}"
    turn = f"Q{x:g} {y1:g} {x + ASIDE:g} {y1:g}"
    path = f"M{left0:g} {y0:g} {bend} V{y1 - ASIDE:g} {turn} H{left1 - 6:g}"
    return f'<path class="way" d="{path}"/><path class="tip" d="M{left1:g} {y1:g}l-8 -5v10z"/>'


def box(n: str, title: str, row: int, x: float) -> str:
    """One chapter: its number, and its title on the second line."""
    y = row * (HIGH + DOWN)
    fits = f' textLength="{WIDE - 12}" lengthAdjust="spacingAndGlyphs"' if len(title) > 28 else ""
    return (
        f'<rect x="{x - WIDE / 2:g}" y="{y}" width="{WIDE}" height="{HIGH}" rx="3"/>'
        f'<text x="{x:g}" y="{y + 19}"><tspan class="reel">{n}</tspan>'
        f'<tspan x="{x:g}" dy="17"{fits}>{html.escape(title)}</tspan></text>'
    )


def spoken(title: str) -> str:
    """A title without the signs of mathematics, for a picture's text."""
    return re.sub(r"[$\\{}]", "", title.replace("\\top", "T"))


def linked(numbers: list[str], names: dict[str, str]) -> str:
    """Chapters by number, each a link to its page."""
    return ", ".join(f"[{n}]({names[n]}.ipynb)" if n in names else n for n in numbers) or "nothing"


def table(books: list[Book], given: Needs) -> str:
    """A line for each chapter: the lecture's minutes, the exercises', and what it builds on."""
    names = {number(name): name for name, _ in books}
    rows = ["| chapter | lecture | exercises | builds on |", "|---|---|---|---|"]
    for name, nb in books:
        lesson = sum(m for _, m in deck.minutes(nb))
        paper = handout.exercises(nb)
        desk = f"{len(paper)}, {sum(e.minutes for e in paper)} min"
        title = f"[{pages.heading(nb, name)}]({name}.ipynb)"
        told = linked(given.get(number(name), []), names)
        rows.append(f"| {title} | {f'{lesson} min' if lesson else ''} | {desk} | {told} |")
    return "\n".join(rows)


def clock(nb: Any) -> str:
    """The lecture part by part, with the minute at which each begins."""
    timed = deck.minutes(nb)
    parts = [(title, length) for title, length in timed if length]
    home = [title for title, length in timed if not length]
    if not parts:
        return ""
    rows, at = ["| from | minutes | part |", "|---|---|---|"], 0
    for title, length in parts:
        rows.append(f"| {at} | {length} | {title} |")
        at += length
    left = f"\n\nFor home: {'; '.join(home)}." if home else ""
    return "\n".join(rows) + left


def advice(name: str, nb: Any, fragment: str, builds_on: str) -> str:
    """What the page says of one chapter: its clock, and its fragment under small headings."""
    text = LINE.sub(f"Builds on {builds_on}.", fragment.strip())
    text = re.sub(r"^### (.*)$", r":::{rubric} \1\n:heading-level: 4\n:::", text, flags=re.M)
    title = f"### [{pages.heading(nb, name)}]({name}.ipynb)"
    return "\n\n".join(part for part in (title, clock(nb), text) if part)


def page(books: list[Book], folder: Path = FRAGMENTS) -> str:
    """The whole page, as Markdown, from the chapters and the fragments in `folder`.

    Raises ValueError as `needs` does.
    """
    fragments = {p.stem: p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.md"))}
    given = needs([name for name, _ in books], fragments)
    names = {number(name): name for name, _ in books}
    titles = {number(name): pages.title(nb, name) for name, nb in books}
    filled = {
        "graph": deck.raw(graph(given, {n: spoken(title) for n, title in titles.items()})),
        "table": table(books, given),
        "term": "\n".join(weeks(books, names)),
        "afternoon": "\n".join(plan(names)),
        "chapters": "\n\n".join(
            advice(name, nb, fragments.get(name, ""), linked(given[number(name)], names))
            for name, nb in books
        ),
    }
    text = (BOOK / "teach.md").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], text)


def weeks(books: list[Book], names: dict[str, str]) -> list[str]:
    """The term as rows of a table: a chapter a week, and what is done after its lecture."""
    rows = []
    for i, (name, nb) in enumerate(books, 1):
        desk = sum(e.minutes for e in handout.exercises(nb))
        more = f"; {DESK[number(name)]}" if number(name) in DESK else ""
        title = f"{linked([number(name)], names)} {pages.title(nb, name)}"
        rows.append(f"| {i} | {title} | the handout, {desk} minutes{more} |")
    return rows


def plan(names: dict[str, str]) -> list[str]:
    """The afternoon as rows of a table, with the minute at which each begins."""
    rows, at = [], 0
    for n, length, what in AFTERNOON:
        chapter = f"{linked([n], names)}: " if n else ""
        rows.append(f"| {at // 60}:{at % 60:02} | {length} | {chapter}{what} |")
        at += length
    return rows

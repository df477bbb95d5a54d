"""The book's pages: each chapter from its executed notebook, and the front page from them all."""

import base64
import html
import re
from itertools import groupby
from pathlib import Path
from typing import Any

from book.execute import code_cells
from mathkit import data

Piece = tuple[Any, str]  # a cell, and a part of its source
STORY, MATH, FOLD, SHOT = "story", "math", "fold", "card"  # tags of cells
FENCE = ":" * 7
EXERCISES = "## Exercises"
EXERCISE = re.compile(r"### Exercise (\d+) \((\d+) minutes\): (.*)")
HEADING = re.compile(r"#{1,6} ")
CODE_FENCE = re.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})")
MINUTES = re.compile(r"\b(\d+) min\b")  # in the table that opens a chapter
CHAPTER = re.compile(r"\[([^\]]*)\]\((\d\d_\w+)\.ipynb\)")
LABORATORY = re.compile(r'<span class="laboratory" data-at="([^"]*)">(.*?)</span>', re.S)
QUOTE = re.compile(r'(<span class="say">)"')  # after a tag SmartyPants takes it for a closing one
CARD = """<a class="card" href="{name}.html">
<span class="shot">{picture}</span>
<span class="label"><b>{number} {title}</b> <i>{blurb}</i> <small>{minutes} minutes</small></span>
</a>"""


def tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", []))


def split_headings(source: str) -> list[str]:
    """Markdown as pieces: each heading line alone, what stands between them together."""
    pieces, fence = [""], ""
    for line in source.splitlines():
        if found := CODE_FENCE.match(line):
            closes = line.strip() == fence[:1] * len(found[1]) and len(found[1]) >= len(fence)
            fence = "" if closes else fence or found[1]
        if HEADING.match(line) and not fence:
            pieces += [line, ""]
        else:
            pieces[-1] += f"{line}\n"
    return [piece.strip("\n") for piece in pieces if piece.strip()]


def told(source: str) -> str:
    """A story cell in its frame; headings stay outside, where the contents find them."""
    frame = f"{FENCE}{{container}} story\n{{}}\n{FENCE}"
    pieces = split_headings(source)
    return "\n\n".join(p if HEADING.match(p) else frame.replace("{}", p) for p in pieces)


def level(piece: Piece) -> int:
    """1 to 6 for a heading, 7 for anything else."""
    cell, text = piece
    return len(text.split(" ")[0]) if cell.cell_type == "markdown" and HEADING.match(text) else 7


def apart(cells: list[Any]) -> list[Piece]:
    """Every cell as its pieces: markdown split at its headings, code whole."""
    whole = (
        (c, split_headings(c.source) if c.cell_type == "markdown" else [c.source]) for c in cells
    )
    return [(cell, text) for cell, texts in whole for text in texts]


def together(pieces: list[Piece]) -> list[Any]:
    """The cells of the pieces, each with what is left of it."""
    cells = []
    for _, group in groupby(pieces, key=lambda piece: id(piece[0])):
        (cell, *_), texts = zip(*group, strict=True)
        cell.source = "\n\n".join(texts)
        cells.append(cell)
    return cells


def without(pieces: list[Piece], heading: str) -> list[Piece]:
    """The pieces less the section under `heading` (as "## Exercises"), itself included."""
    kept, inside = [], False
    for piece in pieces:
        if level(piece) <= heading.index(" "):
            inside = piece[1] == heading
        if not inside:
            kept.append(piece)
    return kept


def filled(pieces: list[Piece]) -> list[Piece]:
    """The pieces without headings that have nothing beneath them; the title stays."""
    kept, below = [], 1  # the level of what follows; the end closes every section
    for piece in reversed(pieces):
        own = level(piece)
        if own in (1, 7) or own < below:
            kept.append(piece)
            below = own
    return kept[::-1]


def chapter(nb: Any, cut: str | None = None) -> Any:
    """The notebook as a page, story framed; with cut "math" or "story" the other kind left out.

    Code tagged "fold" is folded away; in the story cut all is, and there are no exercises. A
    `<span class="laboratory" data-at="seed=1">` becomes a link to the laboratory with that preset.
    """
    dropped = {MATH: STORY, STORY: MATH}.get(cut or "")
    if dropped:
        nb.cells = together(filled(remaining(nb.cells, dropped)))
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = LABORATORY.sub(r'<a href="laboratory.html#\1">\2</a>', cell.source)
            cell.source = QUOTE.sub("\\1\N{LEFT DOUBLE QUOTATION MARK}", cell.source)
        if cell.cell_type == "markdown" and STORY in tags(cell):
            cell.source = told(cell.source)
        if cell.cell_type == "code" and (cut == STORY or FOLD in tags(cell)):
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
    nb.cells = [cell for cell in nb.cells if cell.source]
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "python"}
    return nb


def remaining(cells: list[Any], dropped: str) -> list[Piece]:
    """What a cut leaves: of cells tagged `dropped` the headings alone; in the story also neither
    exercises nor code that shows nothing."""
    pieces = [p for p in apart(cells) if dropped not in tags(p[0]) or level(p) < 7]
    if dropped == STORY:
        return pieces
    shown = [p for p in pieces if p[0].cell_type == "markdown" or p[0].outputs]
    return without(shown, EXERCISES)


def title(nb: Any, name: str) -> str:
    """The first heading, without its number: the card shows that apart."""
    lines = (line for cell in nb.cells for line in cell.source.splitlines())
    found = next((line[2:].strip() for line in lines if line.startswith("# ")), name)
    return re.sub(r"^\d+\s*[^\w\s]?\s+", "", found)


def number(name: str) -> str:
    """The chapter's number, the beginning of its file name."""
    return name.split("_")[0]


def heading(nb: Any, name: str) -> str:
    """Number and title, as a chapter is listed."""
    return f"{number(name)} {title(nb, name)}"


def blurb(nb: Any) -> str:
    """The chapter's one sentence: metadata `mathkit.blurb`, else nothing."""
    return str(nb.metadata.get("mathkit", {}).get("blurb", ""))


def minutes(nb: Any, name: str) -> int:
    """How long a chapter takes to read, as its opening table says."""
    found = MINUTES.search(nb.cells[0].source if nb.cells else "")
    if not found:
        raise ValueError(f"the table that opens {name} must say its minutes, as in '50 min'")
    return int(found[1])


def thumbnail(nb: Any) -> bytes | None:
    """The picture of the cell tagged "card"; without one, the first that the chapter draws."""
    cells = sorted(code_cells(nb), key=lambda cell: SHOT not in tags(cell))
    data = (o.get("data", {}) for cell in cells for o in cell.get("outputs", []))
    first = next((d["image/png"] for d in data if "image/png" in d), None)
    return base64.b64decode(first) if first else None


def card(name: str, nb: Any, pictured: bool) -> str:
    """One entry of the front page's contents."""
    picture = f'<img src="_static/thumb-{name}.png" alt="" loading="lazy">' if pictured else ""
    shown = {"title": html.escape(title(nb, name)), "blurb": html.escape(blurb(nb))}
    listed = {"name": name, "number": number(name), "minutes": minutes(nb, name)}
    return CARD.format(picture=picture, **listed, **shown)


def hours(total: int) -> str:
    """Minutes in words: whole hours from two on, the nearest half hour."""
    halves = round(total / 30)
    return f"{total} minutes" if total < 120 else f"{halves / 2:g} hours"


def front(template: str, needed: dict[str, int], cards: list[str], names: list[str]) -> str:
    """The front page: the template with its cards, its times, and the list that makes the side bar.

    `needed` has the minutes by name. {{time}} becomes the time for all chapters and {{time 01 06}}
    for these; a line that begins with {{if name}} stays where there is a page of that name.
    """

    def time(found: re.Match[str]) -> str:
        wanted = tuple(found[1].split() or [""])
        return hours(sum(n for name, n in needed.items() if name.startswith(wanted)))

    def kept(found: re.Match[str]) -> str:
        return found[2] if any(name.startswith(found[1]) for name in names) else ""

    page = re.sub(r"^\{\{if (\w+)\}\} *(.*\n?)", kept, template, flags=re.MULTILINE)
    page = re.sub(r"\{\{time([ \d]*)\}\}", time, page)
    shown = {
        "first": f"{names[0]}.html" if names else "#",
        "names": "\n".join(names),
        "cards": "\n".join(cards),
    }
    for key, text in shown.items():
        page = page.replace(f"{{{{{key}}}}}", text)
    return page


def reachable(text: str, names: list[str]) -> str:
    """Markdown in which a link to a chapter that is not among `names` is its words alone."""
    return CHAPTER.sub(lambda found: found[0 if found[2] in names else 1], text)


def write(path: Path, content: str | bytes) -> None:
    """Write only what changed, so that a second build has little to do."""
    whole = content.encode() if isinstance(content, str) else content
    if not path.exists() or path.read_bytes() != whole:
        data.store(path, whole)

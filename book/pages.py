"""The book's pages: each chapter from its executed notebook, and the front page from them all."""

import base64
import html
import re
from pathlib import Path
from typing import Any

from book.execute import code_cells

STORY, MATH = "story", "math"
FENCE = ":" * 7
EXERCISES = "## Exercises"
HEADING = re.compile(r"#{1,6} ")
CODE_FENCE = re.compile(r"\s*(```|~~~)")
CARD = """<a class="card" href="{name}.html">
<span class="reel">{number}</span>
<span class="shot">{picture}</span>
<span class="label"><b>{title}</b><i>{blurb}</i></span>
</a>"""


def tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", []))


def split_headings(source: str) -> list[str]:
    """Markdown as pieces: each heading line alone, what stands between them together."""
    pieces, fenced = [""], False
    for line in source.splitlines():
        fenced ^= bool(CODE_FENCE.match(line))
        if HEADING.match(line) and not fenced:
            pieces += [line, ""]
        else:
            pieces[-1] += f"{line}\n"
    return [piece.strip("\n") for piece in pieces if piece.strip()]


def told(source: str) -> str:
    """A story cell in its frame; headings stay outside, where the contents find them."""
    frame = f"{FENCE}{{container}} story\n{{}}\n{FENCE}"
    pieces = split_headings(source)
    return "\n\n".join(p if HEADING.match(p) else frame.replace("{}", p) for p in pieces)


def headings(source: str) -> str:
    return "\n\n".join(piece for piece in split_headings(source) if HEADING.match(piece))


def level(piece: str) -> int:
    """1 to 6 for a heading, 7 for anything else."""
    return len(piece.split(" ")[0]) if HEADING.match(piece) else 7


def without(pieces: list[str], heading: str) -> list[str]:
    """The pieces less the section under `heading` (as "## Exercises"), itself included."""
    kept, inside = [], False
    for piece in pieces:
        if level(piece) <= level(heading):
            inside = piece.strip() == heading
        if not inside:
            kept.append(piece)
    return kept


def sections(cells: list[Any], heading: str) -> list[Any]:
    """The cells less the section under `heading`, which may begin and end inside a cell."""
    kept, inside = [], False
    for cell in cells:
        if cell.cell_type != "markdown":
            kept += [] if inside else [cell]
            continue
        pieces = split_headings(cell.source)
        marked = [heading, *pieces] if inside else pieces
        ends = [piece for piece in marked if level(piece) <= level(heading)]
        inside = bool(ends) and ends[-1].strip() == heading
        cell.source = "\n\n".join(without(marked, heading))
        kept += [cell] if cell.source else []
    return kept


def filled(cells: list[Any]) -> list[Any]:
    """The cells without headings that have nothing beneath them; the title stays."""
    kept: list[Any] = []
    below = 1  # the level of what follows; the end closes every section
    for cell in reversed(cells):
        if cell.cell_type == "markdown":
            left: list[str] = []
            for piece in reversed(split_headings(cell.source)):
                if level(piece) in (1, 7) or level(piece) < below:
                    left, below = [piece, *left], level(piece)
            cell.source = "\n\n".join(left)
        else:
            below = 7
        kept += [cell] if cell.source else []
    return kept[::-1]


def chapter(nb: Any, cut: str | None = None) -> Any:
    """The notebook as a page, story framed; with cut "math" or "story" the other kind left out.

    The story cut folds its code away and has no exercises.
    """
    dropped = {MATH: STORY, STORY: MATH}.get(cut or "")
    cells = [cell for cell in nb.cells if cell.cell_type == "markdown" or dropped not in tags(cell)]
    for cell in cells:
        if cell.cell_type == "markdown" and dropped in tags(cell):
            cell.source = headings(cell.source)
    if cut == STORY:
        cells = [c for c in sections(cells, EXERCISES) if c.cell_type == "markdown" or c.outputs]
        for cell in (c for c in cells if c.cell_type == "code"):
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
    cells = filled(cells) if dropped else cells
    for cell in cells:
        if cell.cell_type == "markdown" and STORY in tags(cell):
            cell.source = told(cell.source)
    nb.cells = [cell for cell in cells if cell.source]
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    return nb


def title(nb: Any, name: str) -> str:
    """The first heading, without its number: the card shows that apart."""
    lines = (line for cell in nb.cells for line in cell.source.splitlines())
    found = next((line[2:].strip() for line in lines if line.startswith("# ")), name)
    return re.sub(r"^\d+\s*[^\w\s]?\s+", "", found)


def blurb(nb: Any) -> str:
    """The chapter's one sentence: metadata `mathkit.blurb`, else nothing."""
    return str(nb.metadata.get("mathkit", {}).get("blurb", ""))


def thumbnail(nb: Any) -> bytes | None:
    """The first picture a chapter draws."""
    data = (o.get("data", {}) for cell in code_cells(nb) for o in cell.get("outputs", []))
    first = next((d["image/png"] for d in data if "image/png" in d), None)
    return base64.b64decode(first) if first else None


def card(name: str, nb: Any, pictured: bool) -> str:
    """One line of the front page's contents."""
    picture = f'<img src="_static/thumb-{name}.png" alt="" loading="lazy">' if pictured else ""
    shown = {"title": html.escape(title(nb, name)), "blurb": html.escape(blurb(nb))}
    return CARD.format(name=name, number=name.split("_")[0], picture=picture, **shown)


def front(template: str, cards: list[str], names: list[str]) -> str:
    """The front page: the template with its cards and the list that makes the side bar."""
    page = template.replace("{{first}}", f"{names[0]}.html" if names else "#")
    return page.replace("{{cards}}", "\n".join(cards)).replace("{{names}}", "\n".join(names))


def write(path: Path, content: str | bytes) -> None:
    """Write only what changed, so that a second build has little to do."""
    data = content.encode() if isinstance(content, str) else content
    if not path.exists() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

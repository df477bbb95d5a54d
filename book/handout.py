"""A chapter's exercises on paper: a sheet with room to write, and a sheet of solutions."""

import html
import re
from dataclasses import dataclass, field
from typing import Any

from book import deck, pages

FOLD = re.compile(r"<details>\s*<summary>(.*?)</summary>(.*?)</details>\s*", re.S)
ANSWER = re.compile(r"^answer_\d+ = \.\.\.\s*", re.M)
SUMMARY = "## Summary"
ROOM = 9  # millimetres to write in for each minute
SOLUTIONS = "_solutions"
LAB = "Where a question shows code, it is a cell of the chapter: `make lab` opens your own copy."


@dataclass
class Exercise:
    """One exercise: its question, what it is given, and what the notebook folds away."""

    title: str
    minutes: int
    question: str = ""
    given: list[pages.Piece] = field(default_factory=list)
    folded: list[tuple[str, str]] = field(default_factory=list)


def section(nb: Any, heading: str) -> list[pages.Piece]:
    """The pieces under a heading of level 2, up to the next."""
    found, inside = [], False
    for piece in pages.apart(nb.cells):
        if pages.level(piece) <= 2:
            inside = piece[1].strip() == heading
        elif inside:
            found.append(piece)
    return found


def exercises(nb: Any) -> list[Exercise]:
    """The chapter's exercises in order; the cells that check an answer are left out."""
    found: list[Exercise] = []
    given = False
    for cell, text in section(nb, pages.EXERCISES):
        head = pages.EXERCISE.match(text) if cell.cell_type == "markdown" else None
        if head:
            found.append(Exercise(f"{head[1]}. {head[3][:1].upper()}{head[3][1:]}", int(head[2])))
            given = True
        elif not found:  # how to answer in the notebook
            continue
        elif cell.cell_type == "markdown":
            found[-1].folded += [(name, body.strip()) for name, body in FOLD.findall(text)]
            found[-1].question += deck.plain(FOLD.sub("", text)).strip()
        else:
            shared = ANSWER.split(cell.source)[0].rstrip()  # what a reader has before answering
            if given and shared:
                found[-1].given.append((cell, shared))
            given = given and not ANSWER.search(cell.source)
    return found


def handed(cell: Any, source: str) -> str:
    """A cell on paper: its code, and what it shows."""
    figures, text = deck.pictures(cell), deck.printed(cell)
    shown = [f'<div class="figures">{"".join(figures)}</div>'] if figures else []
    shown += [f"<pre>{html.escape(text)}</pre>"] if text else []
    code = f"```python\n{source}\n```"
    return "\n\n".join([code, deck.raw("\n".join(shown))] if shown else [code])


def asked(exercise: Exercise, room: bool) -> list[str]:
    """The question, what it is given, and lines to write on."""
    height = ROOM * exercise.minutes
    lines = [deck.raw(f'<div class="write" style="height: {height}mm"></div>')] if room else []
    head = f"## {exercise.title} ({exercise.minutes} minutes)"
    return [head, exercise.question, *(handed(*piece) for piece in exercise.given), *lines]


def needed(nb: Any) -> list[str]:
    """The chapter's summary: the definitions that the exercises rest on."""
    texts = [
        deck.plain(text) for cell, text in section(nb, SUMMARY) if cell.cell_type == "markdown"
    ]
    return ["## What you need", *texts] if texts else []


def sheet(nb: Any, name: str) -> str:
    """The exercises of a chapter as a page of Markdown, without hints and solutions.

    Raises ValueError where the chapter has none.
    """
    found = exercises(nb)
    if not found:
        raise ValueError(f"{name} has no exercises: there is nothing to hand out")
    title = f"# {pages.heading(nb, name)}"
    fill = deck.raw('<p class="fill"><span>Name</span><span>Date</span></p>')
    body = [line for exercise in found for line in asked(exercise, room=True)]
    lab = [LAB] if any(exercise.given for exercise in found) else []
    return "\n\n".join([title, fill, *needed(nb), *lab, *body, deck.LICENCE]) + "\n"


def solutions(nb: Any, name: str) -> str:
    """The same exercises with their hints, solutions and tempting wrong answers."""
    lines = [f"# {pages.heading(nb, name)}: solutions"]
    for exercise in exercises(nb):
        lines += asked(exercise, room=False)
        lines += [unfolded(name, deck.plain(text)) for name, text in exercise.folded]
    return "\n\n".join([*lines, deck.LICENCE]) + "\n"


def unfolded(name: str, text: str) -> str:
    """What the notebook folds away, with its name in front; code stands by itself."""
    return f"**{name}.**{chr(10) * 2 if text.startswith('```') else ' '}{text}"


def texts(nb: Any, name: str) -> dict[str, str]:
    """Both sheets by the names of their pages."""
    return {name: sheet(nb, name), f"{name}{SOLUTIONS}": solutions(nb, name)}

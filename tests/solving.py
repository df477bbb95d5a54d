"""Every chapter executed once, its exercises tried at the end: what several test files share."""

import ast
import functools
import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell

from book.execute import Outcome, execute, read
from book.paths import BUILD, chapters

EXERCISE = re.compile(r"^### Exercise (\d+) \(\d+ minutes\): \S.*$", re.MULTILINE)
BLOCK = r"<details><summary>{}</summary>\n.*?```python\n(.*?)```.*?</details>"
TRY = "try-"
TRIES = Path(__file__).with_name("tries.py").read_text()


def exercises(nb):
    """(number, text, attempt index, check index) of each exercise, in order."""
    starts = [i for i, c in enumerate(nb.cells) if EXERCISE.search(c.source)]
    found = []
    for start, end in zip(starts, [*starts[1:], len(nb.cells)], strict=True):
        code = [i for i in range(start, end) if nb.cells[i].cell_type == "code"]
        check = next(i for i in code if "mk.check(" in nb.cells[i].source)
        attempt = max(i for i in code if i < check and "..." in nb.cells[i].source)
        text = nb.cells[start].source
        found.append((int(EXERCISE.search(text).group(1)), text, attempt, check))
    return found


def block(text, name):
    inside = re.search(BLOCK.format(name), text, re.DOTALL)
    assert inside, f"no python block under <summary>{name}</summary>"
    return inside.group(1)


def judged(source):
    """The check cell with its verdict kept as `verdict`."""
    tree = ast.parse(source)
    calls = [s for s in tree.body if isinstance(s, ast.Expr) and "mk.check(" in ast.unparse(s)]
    assert len(calls) == 1, "a check cell holds one mk.check(...)"
    at = tree.body.index(calls[0])
    tree.body[at] = ast.Assign([ast.Name("verdict", ast.Store())], calls[0].value)
    return ast.unparse(ast.fix_missing_locations(tree))


def solved(nb):
    """The notebook, and after it each exercise attempted: not at all, rightly, wrongly; the right
    one then with other seeds, in other forms, and spoiled (tries.py)."""
    tries = [f"_tried = {{}}\nexec({TRIES!r}, _tried)"]
    for number, text, attempt, check in exercises(nb):
        test = judged(nb.cells[check].source)
        right = f"assert verdict.ok is True, ({number}, verdict.message)"
        wrong = (
            f"assert verdict.ok is False, ({number}, 'the tempting answer passes')\n"
            f"assert 'hint' not in verdict.message.lower(), ({number}, verdict.message)"
        )
        assert attempt < check
        tries += [
            *(nb.cells[i].source for i in range(attempt, check) if nb.cells[i].cell_type == "code"),
            f"{test}\nassert verdict.ok is None, {number}",
            block(text, "Solution"),
            f"{test}\n{right}",
            f"_tried['again']({block(text, 'Solution')!r}, {test!r}, globals())",
            block(text, "A tempting wrong answer"),
            f"{test}\n{wrong}",
        ]
    nb.cells += [new_code_cell(source, id=f"{TRY}{i}") for i, source in enumerate(tries)]
    return nb


@functools.cache
def once() -> dict[str, Outcome]:
    """All chapters in quick mode, exercises tried; a failure names the cell."""
    folder = BUILD / "tried"
    folder.mkdir(parents=True, exist_ok=True)
    copies = [folder / path.name for path in chapters()]
    for path, copy in zip(chapters(), copies, strict=True):
        nbformat.write(solved(read(path)), copy)
    return {o.path.stem: o for o in execute(copies, quick=True, folder=folder / "run")}


def ran(outcome: Outcome):
    """The executed notebook as it is in notebooks/, without the tries."""
    nb = read(outcome.copy)
    nb.cells = [cell for cell in nb.cells if not cell.id.startswith(TRY)]
    return nb

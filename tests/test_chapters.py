"""The chapter standard: sizes, endings, and every exercise solved, rightly and wrongly."""

import ast
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell

from book.execute import code_cells, execute, read
from book.paths import chapters

EACH = pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
EXERCISE = re.compile(r"^### Exercise (\d+) \(\d+ minutes\): \S.*$", re.MULTILINE)
BLOCK = r"<details><summary>{}</summary>\n.*?```python\n(.*?)```.*?</details>"
ENDING = ["Summary", "Exercises", "References"]


def lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def words(nb):
    """Words of prose: without formulas, hints, solutions and references."""
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    text = text.split("## References")[0]
    gone = r"<details>.*?</details>|```.*?```|\$\$.*?\$\$|\$[^$]*\$|<[^>]+>"
    return len(re.findall(r"[A-Za-z][\w'-]*", re.sub(gone, " ", text, flags=re.DOTALL)))


def body(nb):
    """The code cells before the exercises."""
    end = next(i for i, c in enumerate(nb.cells) if re.search(r"^## Exercises", c.source, re.M))
    return [c for c in nb.cells[:end] if c.cell_type == "code"]


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
    """The notebook with each exercise attempted three ways: not at all, rightly, wrongly."""
    cells, after = [], {}
    for number, text, attempt, check in exercises(nb):
        test = judged(nb.cells[check].source)
        right = f"assert verdict.ok is True, ({number}, verdict.message)"
        wrong = (
            f"assert verdict.ok is False, ({number}, 'the tempting answer passes')\n"
            f"assert 'hint' not in verdict.message.lower(), ({number}, verdict.message)"
        )
        after[check] = [
            f"{test}\nassert verdict.ok is None, {number}",
            block(text, "Solution"),
            f"{test}\n{right}",
            block(text, "A tempting wrong answer"),
            f"{test}\n{wrong}",
        ]
        assert attempt < check
    for i, cell in enumerate(nb.cells):
        cells.append(cell)
        cells += [new_code_cell(s, id=f"try-{i}-{j}") for j, s in enumerate(after.get(i, []))]
    nb.cells = cells
    return nb


FREE = "14"  # parts under a table of contents: neither its words nor its lines are counted


@EACH
def test_sizes(path):
    nb = read(path)
    longest = max(len(lines(cell)) for cell in code_cells(nb))
    assert longest <= 15, f"{path.name}: a code cell of {longest} lines"
    if path.stem.startswith(FREE):
        return
    count = sum(len(lines(cell)) for cell in body(nb))
    assert 100 <= count <= 250, f"{path.name}: {count} code lines"
    assert 1000 <= words(nb) <= 2500, f"{path.name}: {words(nb)} words"


@EACH
def test_it_ends_with_summary_exercises_and_references(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert heads[-3:] == ENDING


@EACH
def test_exercises_are_complete(path):
    found = exercises(read(path))
    assert [number for number, *_ in found] == list(range(1, len(found) + 1)) and len(found) >= 3
    for _, text, *_ in found:
        assert "<summary>Hint</summary>" in text
        for name in ("Solution", "A tempting wrong answer"):
            ast.parse(block(text, name))


@EACH
def test_there_are_figures_and_something_that_moves(path):
    code = "\n".join(cell.source for cell in code_cells(read(path)))
    assert re.search(r"widgets\.(flipbook|live)\(", code)
    assert len(re.findall(r"plot\.\w+\(|plt\.(subplots|figure)", code)) >= 3


@pytest.mark.notebook
@EACH
def test_solutions_pass_and_tempting_answers_are_diagnosed(path, tmp_path):
    copy = tmp_path / path.name
    nbformat.write(solved(read(path)), copy)
    (outcome,) = execute([copy], quick=True, folder=tmp_path / "run")
    if outcome.error:
        pytest.fail(outcome.error, pytrace=False)


@pytest.mark.notebook
def test_a_wrong_solution_is_noticed(tmp_path):
    """Planted: the solution and the tempting answer change places."""
    text = (
        "### Exercise 1 (1 minutes): two\n<details><summary>Hint</summary>x</details>\n"
        "<details><summary>Solution</summary>\n```python\na = 3\n```\n</details>\n"
        "<details><summary>A tempting wrong answer</summary>\n```python\na = 2\n```\n</details>"
    )
    nb = nbformat.v4.new_notebook(
        cells=[
            new_code_cell("import mathkit as mk"),
            nbformat.v4.new_markdown_cell(text),
            new_code_cell("a = ..."),
            new_code_cell("mk.check(a, 2, mistakes={'that is one more': 3})"),
        ]
    )
    copy = tmp_path / "01_planted.ipynb"
    nbformat.write(solved(nb), copy)
    (outcome,) = execute([copy], folder=tmp_path / "run")
    assert outcome.error and "that is one more" in outcome.error

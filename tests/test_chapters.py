"""The chapter standard: sizes, endings, exercises; test_book.py runs and solves them."""

import ast
import math
import re

import nbformat
import pytest
import torch
import tries
from nbformat.v4 import new_code_cell
from solving import block, exercises, solved

import mathkit as mk
from book.execute import code_cells, execute, read
from book.paths import chapters

EACH = pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
ENDING = ["Summary", "Exercises", "References"]


def lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def words(nb):
    """Words of prose: without formulas, hints, solutions, addresses of links and references."""
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    text = text.split("## References")[0]
    gone = r"<details>.*?</details>|```.*?```|\$\$.*?\$\$|\$[^$]*\$|<[^>]+>|\]\([^)]*\)"
    return len(re.findall(r"[A-Za-z][\w'-]*", re.sub(gone, " ", text, flags=re.DOTALL)))


def body(nb):
    """The code cells before the exercises."""
    end = next(i for i, c in enumerate(nb.cells) if re.search(r"^## Exercises", c.source, re.M))
    return [c for c in nb.cells[:end] if c.cell_type == "code"]


FREE = "14"  # parts under a table of contents: its lines are not counted


def main_path(nb):
    """The notebook without its appendices, each of which ends where the verdicts are read."""
    kept, appendix = [], False
    for cell in nb.cells:
        if heads := re.findall(r"^## .+", cell.source, re.M):
            appendix = heads[0].startswith("## Appendix")
        kept += [] if appendix else [cell]
    return nbformat.v4.new_notebook(cells=kept)


@EACH
def test_sizes(path):
    nb = read(path)
    longest = max(len(lines(cell)) for cell in code_cells(nb))
    assert longest <= 15, f"{path.name}: a code cell of {longest} lines"
    count_words = words(main_path(nb))
    assert 1500 <= count_words <= 2500, f"{path.name}: {count_words} words"
    if path.stem.startswith(FREE):
        return
    count = sum(not line.startswith(("import ", "from ")) for c in body(nb) for line in lines(c))
    assert 100 <= count <= 250, f"{path.name}: {count} code lines"


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
    assert re.search(r"draw\.(flipbook|live)\(", code)
    assert len(re.findall(r"draw\.\w+\(|plt\.(subplots|figure)", code)) >= 3


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


def again(solution, check):
    """The tries of one exercise, in this process; what was judged."""
    space = {"mk": mk, "torch": torch, "shared": torch.Generator()}
    tries.again(solution, f"verdict = mk.check(answer, {check})", space)


@pytest.mark.parametrize(
    "solution, check",
    [
        ("answer = 2.5", "2.5"),
        ("answer = [4, 3, 13**0.5]", "(4, 3, 13**0.5)"),
        ("answer = [12160, 4096, 0, 0]", "[12160, 4096, 0, 0]"),
        ("answer = torch.tensor([[2.0, 1.0], [1.0, 0.0]])", "[[2.0, 1.0], [1.0, 0.0]]"),
        ("answer = ([0.6, 0.8], 3)", "(torch.tensor([0.6, 0.8]), 3.0), up_to_sign=True"),
        ("answer = [3, 1]", "{1, 3}"),
        ("answer = 'k'", "'k'"),
        ("def answer(x): return x, 2 * x", "lambda x: torch.stack([x, 2 * x]), "
         "inputs=[torch.randn((), generator=shared)]"),
    ],
)  # fmt: skip
def test_a_sound_exercise_passes_its_tries(solution, check):
    again(solution, check)


@pytest.mark.parametrize(
    "check",
    [
        "shared.initial_seed() % 2 + 2.0 + 0 * torch.rand((), generator=shared)",
        "torch.Generator().manual_seed(4).initial_seed() % 2 + 2.0",
        "torch.initial_seed() % 2 + 2.0 + 0 * torch.rand(())",
    ],
)
def test_a_verdict_that_hangs_on_the_draw_is_noticed(check):
    with pytest.raises(AssertionError, match="seed 1: Not yet"):
        again("answer = 2.0", check)


@pytest.mark.parametrize(
    "solution, check",
    [
        ("answer = 1225", "1225.0"),  # a count, judged as a measure
        ("answer = [12160, 4096, 0]", "[12160.0, 4096.0, 0.0]"),
        ("answer = (100.0, 0.1)", "[100.0, 0.1]"),  # two quantities, judged as one vector
    ],
)
def test_a_check_that_lets_a_spoiled_answer_pass_is_noticed(solution, check):
    with pytest.raises(AssertionError, match="should be False: Right"):
        again(solution, check)


def test_a_check_that_refuses_a_form_is_noticed(monkeypatch):
    plain = mk.check

    def picky(answer, *rest, **options):
        return plain(math.nan if isinstance(answer, tuple) else answer, *rest, **options)

    monkeypatch.setattr(mk, "check", picky)
    with pytest.raises(AssertionError, match="should be True"):
        again("answer = [2.0, 1.0]", "[2.0, 1.0]")

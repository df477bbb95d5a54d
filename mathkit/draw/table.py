"""Lines of cells that a notebook shows as a table, a page as HTML and a terminal as text."""

from __future__ import annotations

import html
import numbers
from collections.abc import Sequence
from typing import Any


class Table:
    """Lines of cells under a head; numbers are shown with three digits.

    It shows as HTML in a notebook and on a page, as aligned text elsewhere.

    Args:
        head: what stands above each column.
        lines: their cells, as many as the head has.

    >>> from mathkit import draw
    >>> draw.Table(["method", "cured"], [["aimed", 2 / 3], ["random", 0.125]])
    method  cured
    aimed   0.667
    random  0.125
    """

    def __init__(self, head: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
        self.head, self.lines = list(head), [list(line) for line in lines]

    def _repr_html_(self) -> str:
        def line(cells: Sequence[Any], tag: str) -> str:
            return "".join(f"<{tag}>{html.escape(_text(cell))}</{tag}>" for cell in cells)

        rows = "".join(f"<tr>{line(cells, 'td')}</tr>" for cells in self.lines)
        return f"<table><tr>{line(self.head, 'th')}</tr>{rows}</table>"

    def __repr__(self) -> str:
        cells = [[_text(cell) for cell in line] for line in (self.head, *self.lines)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(map(str.ljust, line, widths)).rstrip()  # type: ignore[arg-type]
            for line in cells
        )


def _text(cell: Any) -> str:
    real = isinstance(cell, numbers.Real) and not isinstance(cell, numbers.Integral)
    return f"{float(cell):.3g}" if real else str(cell)

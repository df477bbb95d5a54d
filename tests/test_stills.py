"""The frame of the tape that each chapter shows: he comes nearer, by one pixel a chapter."""

import io
import re

import matplotlib
import numpy as np
import pytest
from PIL import Image

matplotlib.use("Agg")

from book.execute import code_cells, read  # noqa: E402
from book.paths import chapters  # noqa: E402
from mathkit import draw  # noqa: E402
from mathkit.draw import stills, tape  # noqa: E402

LAST = 12  # chapter with him


def edge(chapter):
    """The column of his left edge, at the height of his chest, in the frame before the tape."""
    there, bare = (stills.scene(c)[90:130, 120:].astype(int).sum((0, 2)) for c in (chapter, 14))
    return 120 + int((there < 0.5 * bare).argmax())


def test_he_comes_one_pixel_of_the_show_nearer_in_each_chapter(monkeypatch):
    bright = stills.lit
    monkeypatch.setattr(stills, "lit", lambda chapter: bright(1))
    steps = -np.diff([edge(chapter) for chapter in range(1, LAST + 1)])
    pixel = stills.SIZE / 64  # between two columns of the frame and three
    assert set(steps) <= {2, 3} and sum(steps) == pytest.approx(11 * pixel, abs=1)
    assert 155 < edge(1) < stills.SIZE - 3


def test_nothing_else_moves():
    frames = [stills.scene(c)[:, :110] for c in (1, 5, LAST)]
    assert all(np.array_equal(frames[0], x) for x in frames)


def test_afterwards_there_is_a_lit_chair_and_then_nobody():
    him, chair, empty = (stills.scene(c).astype(int) for c in (LAST, stills.CHAIR, stills.EMPTY))
    place = np.s_[78:118, 132:164]
    assert chair[place].mean() > 3 * him[place].mean()
    assert chair[place].max() > 120 > empty[place].max()
    whites = [int((x.min(-1) > 90).sum()) for x in (him, chair, empty)]  # of the puppet's eyes
    assert whites[0] > 300 and whites[1] > 300 and whites[2] == 0


@pytest.mark.parametrize("chapter", [1, 7, 12, 13, 14])
def test_the_picture_is_small_and_the_same_each_time(chapter):
    shown = draw.still(chapter, "12:32")
    assert shown._repr_png_() == draw.still(chapter, "12:32").png and len(shown.png) <= 25_000
    assert Image.open(io.BytesIO(shown.png)).size == (360, 270)
    assert repr(shown) == f"[a frame of the tape, chapter {chapter}]"


def test_only_the_tape_wears_it(monkeypatch):
    """Without the cassette's faults the picture is the scene, in 64 colours."""
    monkeypatch.setattr(tape.VHS, "__call__", lambda self, frame, i=0, fps=30: frame)
    shown = Image.open(io.BytesIO(draw.still(3, "06:38").png)).convert("RGB")
    scene = stills.scene(3).repeat(2, 0).repeat(2, 1).astype(int)
    assert np.abs(np.asarray(shown) - scene).mean() < 8


def test_the_time_code_is_the_chapters(monkeypatch):
    asked, wear = [], tape.VHS.__call__

    def noted(self, frame, i=0, fps=30):
        asked.append(i / fps)
        return wear(self, frame, i, fps)

    monkeypatch.setattr(tape.VHS, "__call__", noted)
    draw.still(13, "54:30")
    assert asked == [54 * 60 + 30]


@pytest.mark.parametrize("bad", [(0, "1:00"), (15, "1:00"), (2.5, "1:00"), (1, "1:60"), (1, 60),
                                 (1, "")])  # fmt: skip
def test_bad_input_is_named(bad):
    with pytest.raises((ValueError, TypeError), match="chapter|code"):
        draw.still(*bad)


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_each_chapter_shows_its_own(path):
    nb = read(path)
    calls = [c for c in code_cells(nb) if "draw.still(" in c.source]
    (cell,) = calls
    (found,) = re.findall(r'draw\.still\((\d+), "(\d\d:\d\d)"\)', cell.source)
    number = path.stem[:2]
    code = re.search(rf"\| {number} of 14 \| (\d\d:\d\d)", nb.cells[0].source)
    assert found == (str(int(number)), code[1] if code else "60:00")
    before = nb.cells[nb.cells.index(cell) - 1]
    assert "story" in before.metadata.tags and "fold" in cell.metadata.tags
    assert len(cell.metadata.alt) == 1

"""Moving pictures are plain objects: set a value, compare bytes; no kernel, no browser is needed.

How a flip book behaves in a page is tested in test_flipbook.py.
"""

import base64
import io
import re

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")
W = pytest.importorskip("ipywidgets")
plt = pytest.importorskip("matplotlib.pyplot")

from mathkit.draw import curves, moving, widgets  # noqa: E402

draw_book = widgets.flipbook


def images(n, seed=0):
    small = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return 2 * torch.nn.functional.interpolate(small, 16) - 1


def draw(t, bend=1.0):
    return curves.spectrum(torch.linspace(9, 1, 9) ** (bend * t / 500))


@pytest.fixture(autouse=True)
def no_figure_is_left_open():
    plt.close("all")  # another file may have left some
    yield
    assert plt.get_fignums() == []


# --- frames --------------------------------------------------------------------------------------


def size(png):
    from PIL import Image

    return Image.open(io.BytesIO(png)).size


def test_a_frame_is_made_of_anything_that_is_a_picture():
    made = draw(500)
    for x in (made, draw(500).figure, widgets.frame(draw(500))):
        assert widgets.frame(x) == widgets.frame(draw(500))
    assert size(widgets.frame(images(1)[0])) == (256, 256)
    assert size(widgets.frame(images(3)))[0] == 960


def test_what_is_no_picture_or_too_large_is_refused():
    with pytest.raises(TypeError, match="a picture is"):
        widgets.frame("a.png")
    with pytest.raises(TypeError, match="a picture is"):
        widgets.frame(None)
    with pytest.raises(ValueError, match="over 100"):
        widgets.frame(images(1)[0], limit=100)


# --- live ----------------------------------------------------------------------------------------


@pytest.mark.long
def test_moving_a_slider_redraws_what_draw_returns():
    box = widgets.live(draw, t=(0, 900, 100, 500), bend=(0.0, 2.0, 0.5))
    assert box.sliders["bend"].value == 1.0
    assert box.image.value == widgets.frame(draw(500))
    box.sliders["t"].value = 100
    assert box.image.value == widgets.frame(draw(100))
    box.sliders["bend"].value = 0.5
    assert box.image.value == widgets.frame(draw(100, 0.5))


def test_sliders_wait_until_they_are_let_go():
    box = widgets.live(lambda **_: images(1)[0], t=(0, 9), x=(0.0, 1.0), k=[1, 2, 5], m=["a", "b"])
    kinds = {name: type(s).__name__ for name, s in box.sliders.items()}
    assert kinds == {"t": "IntSlider", "x": "FloatSlider", "k": "SelectionSlider", "m": "Dropdown"}
    assert not any(box.sliders[name].continuous_update for name in "txk")
    assert [s.description for s in box.sliders.values()] == ["t", "x", "k", "m"]
    assert (box.sliders["t"].value, box.sliders["x"].value, box.sliders["k"].value) == (4, 0.5, 1)


def test_a_ready_made_widget_is_taken_as_it_is():
    mine = W.IntSlider(3, 0, 5)
    box = widgets.live(lambda n: images(1, n)[0], n=mine)
    mine.value = 4
    assert box.image.value == widgets.frame(images(1, 4)[0])


def test_a_later_failure_is_shown_and_the_picture_stays():
    def fussy(n):
        if n > 2:
            raise ValueError("n < 3 & no more")
        return images(1, n)[0]

    box = widgets.live(fussy, n=(0, 5, 1, 1))
    before = box.image.value
    box.sliders["n"].value = 4
    assert "ValueError: n &lt; 3 &amp; no more" in box.status.value and box.image.value == before
    box.sliders["n"].value = 2
    assert box.status.value == "" and box.image.value == widgets.frame(images(1, 2)[0])


def test_a_draw_that_never_works_raises_at_once():
    with pytest.raises(ZeroDivisionError):
        widgets.live(lambda n: 1 / 0, n=(0, 5))


@pytest.mark.parametrize("spec", [(1,), 3, (0, 5, 1, 9), (0, 5, 0), (1.0, 1.0)])
def test_a_slider_that_is_none_is_refused(spec):
    with pytest.raises(ValueError, match="slider (n|has low < high)"):
        widgets.live(lambda n: images(1)[0], n=spec)


def test_without_a_kernel_it_says_so_before_its_picture():
    box = widgets.live(draw, t=(0, 900, 100, 500), describe="The <bend>.")
    shown = box._repr_mimebundle_()
    page = shown["text/html"]
    assert (
        "application/vnd.jupyter.widget-view+json" in shown
    )  # what a notebook with a kernel shows
    assert page.index("running kernel") < page.index("<img") and "The &lt;bend&gt;. t 500" in page
    assert base64.b64encode(box.image.value).decode() in page
    assert "running kernel" in box.children[0].value


# --- flipbook ------------------------------------------------------------------------------------


def pictures(page):
    """What a page's data addresses hold, decoded by Pillow."""
    from PIL import Image

    found = re.findall(r"data:image/(?:png|webp);base64,([A-Za-z0-9+/=]+)", page)
    return [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in found]


def test_every_value_has_its_frame():
    book = draw_book(images(3), "t", values=torch.tensor([0.25, 0.5, 1e-5]), start=1)
    assert book.values == ("0.25", "0.5", "1e-05") and (book.label, book.start) == ("t", 1)
    assert book.frames == tuple(widgets.frame(x) for x in images(3))


def test_the_page_holds_the_same_pixels_as_the_frames():
    """The first picture is the still of `start`, then come all: packing them changes no pixel."""
    from PIL import Image

    for frames in (images(3), [draw(t) for t in (100, 300, 500)]):
        book = draw_book(frames, start=2)
        still, *rest = pictures(book._repr_html_())
        given = [Image.open(io.BytesIO(png)).convert("RGB") for png in book.frames]
        assert [x.tobytes() for x in rest] == [x.tobytes() for x in given]
        assert still.tobytes() == given[2].tobytes()


def test_where_html_may_not_move_there_is_a_still_and_a_sentence():
    book = draw_book(images(4), "s", start=3, describe="It fades.")
    assert moving.titled(book.frames[3], "s 3: one of 4 pictures") == book._repr_png_()
    assert repr(book) == "[one of 4 pictures of a flip book: s 3]"
    bare = re.sub(r"<script>.*?</script>", "", book._repr_html_(), flags=re.S)
    assert len(pictures(bare)) == 1 and 'alt="It fades. s 3"' in bare
    assert "One of 4 pictures" in bare and "display:none" in bare


@pytest.mark.parametrize(
    "frames", [images(3), images(3, 1)[:, :, :8], [draw(t) for t in (1, 2, 3)]]
)
def test_the_still_says_which_picture_it_is_and_shows_all_of_it(frames):
    from PIL import Image

    book = draw_book(frames, "a long name of a dial", values=[0.25, 0.5, 0.75], start=1)
    still, bare = (Image.open(io.BytesIO(x)) for x in (book._repr_png_(), book.frames[1]))
    head = still.height - bare.height
    assert still.width == bare.width and 16 <= head <= 120
    below = np.asarray(still.convert("RGB").crop((0, head, bare.width, still.height))).astype(int)
    assert np.percentile(np.abs(below - np.asarray(bare.convert("RGB"))), 99) <= 8
    words = np.asarray(still.convert("L").crop((0, 0, bare.width, head)))
    assert (words < 90).sum() > 50  # ink
    assert words[:, -2:].min() > 200 and words[-1].min() > 200  # and none of it is cut
    assert len(book._repr_png_()) < len(book.frames[1]) + 12_000


def test_two_flip_books_on_a_page_share_no_name():
    page = draw_book(images(2))._repr_html_()
    assert not re.search(r"\bid=|\bfor=|\bname=", page)


@pytest.mark.long
def test_a_generator_of_figures_is_drawn_and_closed_one_by_one():
    def figures():
        for t in (100, 300, 500):
            assert not plt.get_fignums()
            yield draw(t)

    plt.close("all")  # what other tests left open
    book = draw_book(figures(), values=[100, 300, 500], start=1)
    assert book.frames[1] == widgets.frame(draw(300))


def test_the_description_is_text_on_the_page():
    book = draw_book(images(2), describe="The Stranger <fades>.")
    live = widgets.live(lambda n: images(1)[0], n=(0, 3), describe="The Stranger <fades>.")
    assert "The Stranger &lt;fades&gt;." in book._repr_html_()
    assert "The Stranger &lt;fades&gt;." in live.children[-1].value
    assert live.image.tooltip is None  # one that has a tooltip could not be shown


def test_no_text_of_the_caller_ends_the_script():
    book = draw_book(images(2), "</script><b>", values=["</script>", "b"], describe="</script>")
    assert book._repr_html_().count("</script>") == 1


@pytest.mark.long
def test_a_flipbook_stays_under_its_total(monkeypatch):
    free = len(widgets.frame(draw(300)))
    monkeypatch.setattr(widgets, "TOTAL", 2 * free)
    book = draw_book((draw(t) for t in (100, 300, 500)), values=range(3))
    assert sum(map(len, book.frames)) <= 2 * free
    with pytest.raises(ValueError, match="smaller, or fewer"):
        draw_book(images(3, 1).repeat(100, 1, 1, 1))


@pytest.mark.parametrize("kwargs", [{"values": [1]}, {"start": 2}, {"start": -1}])
def test_what_does_not_match_is_refused(kwargs):
    with pytest.raises(ValueError, match="a flipbook needs"):
        draw_book(images(2), **kwargs)


def test_one_frame_is_no_flipbook():
    with pytest.raises(ValueError, match="2 frames or more"):
        draw_book(images(1))


# --- rotate, stretch, rotate ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows", [[[3, 0], [4, 5]], [[1, 2], [0.5, -1]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]]
)
def test_two_rotations_and_a_stretch_make_the_matrix(rows):
    M = torch.tensor(rows, dtype=torch.float64)
    names, stages, V = widgets._acts(M, 5)
    assert len(names) == len(stages) == 16 and torch.equal(stages[0], torch.eye(2).double())
    assert torch.allclose(stages[-1], M, atol=1e-3 * float(M.norm() + 1e-9))
    assert torch.allclose(stages[5] @ V.T, torch.eye(2).double(), atol=1e-6)  # V: v_i to axis i
    for A in (stages[3], stages[5]):
        assert torch.allclose(A @ A.T, torch.eye(2).double(), atol=1e-6) and torch.linalg.det(A) > 0
    turned = stages[13] @ torch.linalg.inv(stages[10]) if torch.linalg.det(M) else torch.eye(2)
    assert torch.allclose(turned @ turned.T, torch.eye(2).to(turned), atol=1e-6)


@pytest.mark.long
def test_the_three_acts_are_a_flipbook():
    box = widgets.rotate_stretch_rotate(torch.tensor([[3.0, 0.0], [4.0, 5.0]]), pages=2, start=1)
    assert len(box.frames) == 7 and box.values[box.start] == "rotate 1/2"
    with pytest.raises(ValueError, match=r"\(2, 2\), got \(3, 3\)"):
        widgets.rotate_stretch_rotate(torch.eye(3))
    with pytest.raises(ValueError, match="pages is an integer >= 1, got 0"):
        widgets.rotate_stretch_rotate(torch.eye(2), pages=0)

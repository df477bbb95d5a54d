"""A gallery of every primitive, judged by what can be measured: legible, complete, small."""

import io
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

from matplotlib.colors import to_rgb  # noqa: E402
from PIL import Image  # noqa: E402
from skimage.color import deltaE_ciede2000, rgb2lab  # noqa: E402

from mathkit.draw import Table, curves, pictures, style  # noqa: E402
from mathkit.show import puppets  # noqa: E402

NAMES = ["curtain hue", "felt hue", "eye size", "mouth opening", "smile", "light", "stranger"]
PHONE = 390  # px, the width at which a figure must still be read


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=rng(seed))


def images(n, channels=3):
    smooth = torch.nn.functional.interpolate(rand(n, channels, 5, 5), 64, mode="bilinear")
    return 2 * smooth - 1


def doses():
    x = torch.linspace(0, 0.3, 7)
    rates = {"masked posterior mean": 30, "local SVD of h": 9, "random direction": 2}
    ys = {name: 1 - torch.exp(-r * x) for name, r in rates.items()}
    lines = {n: (x, y, (y - 0.06).clamp(0), (y + 0.05).clamp(max=1)) for n, y in ys.items()}
    return lines | {"oracle": ([0.05], [0.95], [0.9], [0.98])}


def svd2(*rows):
    U, S, Vh = torch.linalg.svd(torch.tensor(rows))
    return U.mT, S, Vh


def two_spectra():
    s = torch.linspace(42, 20, 12)
    ax = curves.spectrum(s, residuals=0.03 * s, k=3, label="encoder", title="Singular values")
    return curves.spectrum(0.6 * s, label="pooled", ax=ax)


def trends():
    t = torch.arange(900, 0, -200.0)
    y = 0.1 + rand(2, 5)
    exact = torch.full((3,), 0.5)
    return {
        "encoder": (t, y[0], y[0] - 0.05, y[0] + 0.1),
        "posterior mean": (t, y[1]),
        "exact posterior": (t[:3], exact, exact - 0.1, exact + 0.1),
    }


GALLERY = {
    "strip": lambda: pictures.strip(
        images(8), [f"t = {t}" for t in range(900, 100, -100)], title="Noise"
    ),
    "stage": lambda: pictures.stage(
        torch.tensor([[0.8, 0.0], [1.0, 1.2]]), torch.eye(2), 1.8, "Stretched and turned"
    ),
    "diagram": lambda: pictures.diagram(
        {"a": (0, 0, 1, 1), "a long name": (3, 1, 2, 1), "b": (3, -1, 2, 1)},
        [("a", "a long name", "2"), ("a", "b", "")],
        accent=["b"],
        title="One to two",
    ),
    "diagram, names outside": lambda: pictures.diagram(
        {"down\n64 x 32": (-3, 0, 1, 1), "h": (0, -1, 1, 1), "up\n64 x 32": (3, 0, 1, 1)},
        [("down\n64 x 32", "h", ""), ("h", "up\n64 x 32", "on")],
        outside=True,
    ),
    "features": lambda: pictures.features(
        torch.stack([rand(2, 5, seed=i) - 0.5 for i in range(7)]),
        [f"p = {p}" for p in (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)],
        title="Five features",
    ),
    "row wrapped": lambda: pictures.strip(images(20), torch.linspace(0, 1, 20), title="Doses"),
    "row long labels": lambda: pictures.strip(
        images(3), ["untreated", "a cure that went wrong", "cured"]
    ),
    "row alone": lambda: pictures.strip(images(1), ["x"]),
    "directions": lambda: pictures.strip(
        torch.randn(6, 3, 9, 9, generator=rng()), range(6), signed=True
    ),
    "directions, one channel": lambda: pictures.strip(images(4, 1), signed=True, title="A " * 60),
    "cards": lambda: pictures.cards(
        images(4), rand(4, 7), NAMES, reference=rand(4, 7, seed=1), accent="smile", title="Case 1"
    ),
    "cards wrapped": lambda: pictures.cards(images(6), rand(6, 3), NAMES[:3]),
    "spectrum": two_spectra,
    "spectrum, log": lambda: curves.spectrum(10.0 ** -torch.arange(9), log=True, k=4),
    "ellipse": lambda: pictures.ellipse(*svd2([1.6, 0.7], [0.2, 0.8]), title="The longest image"),
    "ellipse, flat": lambda: pictures.ellipse(*svd2([3.0, 1.0], [0.0, 0.0])),
    "ellipse, circle": lambda: pictures.ellipse(*svd2([1.0, 0.0], [0.0, 1.0])),
    "heat": lambda: pictures.heat(
        rand(7, 7), rows=NAMES, columns=NAMES, title="Overlap", label="cosine"
    ),
    "heat, signed": lambda: pictures.heat(rand(4, 9) - 0.5, signed=True, label="correlation"),
    "heat, large": lambda: pictures.heat(rand(24, 24), title="Phase diagram"),
    "tradeoff": lambda: curves.tradeoff(
        doses(), accent="local SVD of h", title="What a cure costs"
    ),
    "over time": lambda: curves.over_time(
        trends(),
        levels={"chance": 0.05},
        accent="exact posterior",
        title="Found of the tangent space",
        ylabel="share",
    ),
    "over time, log": lambda: curves.over_time(trends(), log=True, levels={"floor": 1e-3}),
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(params=GALLERY, ids=str)
def ax(request):
    return GALLERY[request.param]()


def text_boxes(figure):
    """(text, box in px) of each text that is drawn; ticks beyond the limits are not."""
    Text, shown = matplotlib.text.Text, []
    draw = Text.draw

    def noting(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text():
            shown.append((self, self.get_window_extent(renderer)))
        return draw(self, renderer, *args, **kwargs)

    figure.canvas.draw()  # settles the layout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", noting)
        figure.canvas.draw()
    return shown


def clipped(figure):
    width, height = figure.canvas.get_width_height()
    return [
        t.get_text()
        for t, b in text_boxes(figure)
        if b.x0 < 0 or b.y0 < 0 or b.x1 > width or b.y1 > height
    ]


def overlapping(figure):
    boxes = [(t.get_text(), b.padded(-1)) for t, b in text_boxes(figure)]
    pairs = [(boxes[i], boxes[j]) for i in range(len(boxes)) for j in range(i)]
    return [(s, t) for (s, a), (t, b) in pairs if a.overlaps(b)]


# --- the gallery ---------------------------------------------------------------------------------


def test_no_text_is_clipped_or_overlaps(ax):
    assert clipped(ax.figure) == []
    assert overlapping(ax.figure) == []


def test_text_is_legible_on_a_phone(ax):
    scale = PHONE / (72 * ax.figure.get_figwidth())  # px a point
    sizes = {t.get_text(): t.get_fontsize() * scale for t, _ in text_boxes(ax.figure)}
    assert ax.figure.get_figwidth() == style.WIDTH
    assert all(size >= 8 for size in sizes.values()), sizes


def test_png_is_small_and_sharp(ax):
    data = style.png(ax)
    assert len(data) <= 90_000
    assert Image.open(io.BytesIO(data)).size[0] >= 2 * PHONE


def test_the_same_figure_gives_the_same_bytes():
    for make in (GALLERY["strip"], GALLERY["tradeoff"]):
        assert style.png(make()) == style.png(make().figure)


def test_the_paper_shows(ax):
    corner = Image.open(io.BytesIO(style.png(ax))).convert("RGB").getpixel((1, 1))
    assert np.abs(np.array(corner) / 255 - to_rgb(style.PAPER)).max() < 0.02


def worst(data, figure):
    """The largest error of a colour, of 255, and the 99th percentile."""
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=160)
    exact, stored = (np.asarray(Image.open(x).convert("RGB")) for x in (raw, io.BytesIO(data)))
    error = np.abs(exact.astype(int) - stored).max(-1)
    return error.max(), np.percentile(error, 99)


def test_colour_pictures_keep_their_shades():
    """A palette of 256 for many puppets, as planted, makes facets of their faces."""
    frames = puppets.render(puppets.sample_factors(16, seed=34))

    def afresh():  # the layout of a second drawing is another by a pixel
        return pictures.strip(frames, title="Sixteen", width=3.6).figure

    data = style.png(afresh())
    assert max(worst(data, afresh())) <= 3 and len(data) <= 60_000
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    assert picture.getpixel((1, 1)) == tuple(round(255 * c) for c in to_rgb(style.PAPER))
    assert min(worst(style.palette(picture, 256), afresh())) > 20


@pytest.mark.long
def test_where_many_bytes_are_not_allowed_a_palette_is_the_last_resort():
    ax = GALLERY["row wrapped"]()
    sizes = [len(style.png(ax, limit)) for limit in (90_000, 30_000, 16_000)]
    assert sizes[0] > 30_000 >= sizes[1] > 16_000 >= sizes[2]


@pytest.mark.parametrize("many", [1, 2, 17, 255, 256, 257])
def test_packing_changes_no_pixel(many):
    few = np.random.default_rng(many).integers(0, 256, (many, 3)).astype(np.uint8)
    x = few[np.arange(24 * 32) % many].reshape(24, 32, 3)
    back = Image.open(io.BytesIO(style.packed(Image.fromarray(x))))
    assert np.array_equal(np.asarray(back.convert("RGB")), x)
    assert (back.mode == "P") == (len(np.unique(few, axis=0)) <= 256)


def paper_below(ax):
    """Rows of paper under the last thing drawn, in inches."""
    x = np.asarray(Image.open(io.BytesIO(style.png(ax, 10**6))).convert("RGB")).astype(int)
    ink = (np.abs(x - x[-1, 0]).sum(-1) > 20).any(1)
    return ink[::-1].argmax() / (x.shape[1] / ax.figure.get_figwidth())


FITTED = {
    "labels above alone": lambda: pictures.strip(images(12), ["a"] * 6 + [""] * 6, columns=6),
    "labels below alone": lambda: pictures.strip(images(4), ["", "", "two words", "b"], columns=2),
    "one label of two lines": lambda: pictures.strip(images(3), ["a", "b", "long " * 9]),
    "formulas": lambda: pictures.strip(images(5), ["$J v'$", "a", "b", "c", "true cure $D^*$"]),
    "many rows": lambda: pictures.strip(images(24), range(24), columns=4, title="Tall " * 20),
    "no words": lambda: pictures.strip(images(8)),
    "narrow": lambda: pictures.strip(images(6), range(6), columns=3, title="Small", width=3.6),
    "features": GALLERY["features"],
    "cards": GALLERY["cards"],
}


@pytest.mark.long
@pytest.mark.parametrize("name", FITTED)
def test_no_empty_paper_lies_below_the_last_row(name):
    ax = FITTED[name]()
    assert clipped(ax.figure) == [] and overlapping(ax.figure) == []
    assert paper_below(ax) <= (0.2 if name == "cards" else 0.13)


def test_the_search_for_empty_paper_finds_a_planted_band():
    ax = FITTED["no words"]()
    ax.figure.set_figheight(ax.figure.get_figheight() + 0.5)
    assert paper_below(ax) > 0.25


def test_a_narrow_strip_has_letters_of_the_same_size():
    wide, narrow = (pictures.strip(images(4), range(4), title="T", width=w) for w in (6, 3))
    assert narrow.figure.get_figwidth() == 3
    for one, other in zip(wide.texts, narrow.texts, strict=True):
        assert one.get_fontsize() == other.get_fontsize()


@pytest.mark.long
def test_an_axes_given_is_the_one_that_comes_back():
    figure, axes = plt.subplots(2, 3, layout="constrained", figsize=(9, 6))
    draws = [
        lambda ax: pictures.strip(images(4), ax=ax),
        lambda ax: pictures.cards(images(2), rand(2, 3), NAMES[:3], ax=ax),
        lambda ax: curves.spectrum(torch.ones(3), ax=ax),
        lambda ax: pictures.ellipse(*svd2([1.6, 0.7], [0.2, 0.8]), ax=ax),
        lambda ax: pictures.heat(rand(3, 3), ax=ax),
        lambda ax: curves.tradeoff(doses(), ax=ax),
    ]
    for axes_one, draw in zip(axes.flat, draws, strict=True):
        assert draw(axes_one) is axes_one
    assert plt.get_fignums() == [figure.number]
    assert clipped(figure) == []


def test_the_checkers_see_a_planted_fault():
    ax = GALLERY["strip"]()
    ax.figure.text(0.95, 0.5, "far too long to fit")
    assert clipped(ax.figure) == ["far too long to fit"]
    ax = GALLERY["spectrum"]()
    ax.text(1, 1, "one")
    ax.text(1.1, 1, "two")
    assert overlapping(ax.figure) == [("two", "one")]


# --- what is drawn -------------------------------------------------------------------------------


def drawn(image):
    """The colours of the only picture of a row, (H, W, 3)."""
    return pictures.strip(image, signed=image.shape[1] == 1).images[0].get_array()


def test_images_run_from_black_to_white_and_are_cut_beyond():
    x = torch.tensor([-1.0, 0.0, 1.0, 3.0]).expand(1, 3, 1, 4)
    assert np.allclose(drawn(x)[0, :, 0], [0, 0.5, 1, 1])


def test_signed_images_have_zero_in_the_middle_whatever_their_size():
    for size in (1e-4, 50.0):
        v = size * torch.tensor([[-2.0, 0, 1.0, 2.0]]).expand(1, 3, 1, 4)
        colours = pictures.strip(v, signed=True).images[0].get_array()
        assert np.allclose(colours[0, :, 0], [0, 0.5, 0.75, 1])
        one = drawn(v[:, :1])
        assert np.allclose(one[0, 1], to_rgb("#f6f6f6"), atol=0.02)
        assert one[0, 0, 2] > one[0, 0, 0] and one[0, 3, 0] > one[0, 3, 2]  # blue, red
    assert np.allclose(pictures.strip(0 * v, signed=True).images[0].get_array(), 0.5)


def test_a_common_scale_keeps_small_directions_pale():
    v = torch.stack([torch.full((3, 2, 2), 1.0), torch.full((3, 2, 2), 0.1)])
    pale = pictures.strip(v, signed=True, scale=1.0).images[1].get_array()
    assert np.allclose(pale, 0.55)


def test_bars_are_as_long_as_the_factors_and_cut_at_the_track():
    ax = pictures.cards(images(1), torch.tensor([[0.25, 1.4, -0.2]]), NAMES[:3], accent="eye size")
    track, bars = (c.patches for c in ax.containers)
    assert [b.get_width() for b in bars] == pytest.approx([0.25, 1, 0])
    assert [b.get_width() for b in track] == [1, 1, 1]
    assert [to_rgb(b.get_facecolor()) == to_rgb(style.ACCENT) for b in bars] == [
        False,
        False,
        True,
    ]


def test_the_ellipse_is_the_image_of_the_circle():
    M = torch.tensor([[1.6, 0.7], [0.2, 0.8]])
    circle, image = (torch.tensor(line.get_xydata()).float() for line in
                     pictures.ellipse(*svd2(*M.tolist())).lines)  # fmt: skip
    assert torch.allclose(circle.norm(dim=1), torch.ones(len(circle)), atol=1e-6)
    assert torch.allclose(
        (image @ torch.linalg.inv(M).mT).norm(dim=1), torch.ones(len(image)), atol=1e-6
    )


def test_spectrum_counts_from_one_and_leaves_zeros_out_of_a_logarithm():
    ax = curves.spectrum(torch.tensor([4.0, 1.0, 0.0]), log=True)
    assert ax.lines[0].get_xydata().tolist() == [[1, 4], [2, 1]]


def test_heat_is_symmetric_about_zero_when_signed():
    image = pictures.heat(torch.tensor([[-3.0, 1.0]]), signed=True).images[0]
    assert image.get_clim() == (-3, 3)
    assert pictures.heat(torch.tensor([[2.0, 1.0]])).images[0].get_clim() == (0, 2)


def test_drawing_leaves_the_readers_own_settings_alone():
    before = dict(matplotlib.rcParams)
    GALLERY["tradeoff"]()
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context():
        style.use()
        assert matplotlib.rcParams["figure.facecolor"] == style.PAPER


# --- colours -------------------------------------------------------------------------------------


def linear(rgb):
    rgb = np.asarray(rgb)
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def encoded(light):
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def closest(colours, vision):
    seen = [rgb2lab(encoded(np.array(VISION[vision]) @ linear(to_rgb(c)))) for c in colours]
    return min(deltaE_ciede2000(a, b) for i, a in enumerate(seen) for b in seen[:i])


@pytest.mark.parametrize("vision", VISION)
def test_colours_are_told_apart_by_every_eye(vision):
    assert closest((style.ACCENT, *style.CYCLE), vision) > 10


def test_the_colour_checker_sees_the_red_and_green_of_old():
    assert (
        closest(("#d62728", "#2ca02c"), "normal")
        > 10
        > closest(("#a05a00", "#5f7000"), "deuteranopia")
    )


def test_lines_and_text_stand_out_from_the_paper():
    def luminance(colour):
        return linear(to_rgb(colour)) @ [0.2126, 0.7152, 0.0722]

    def contrast(colour):
        return (luminance(style.PAPER) + 0.05) / (luminance(colour) + 0.05)

    assert min(map(contrast, (style.ACCENT, *style.CYCLE))) >= 3  # WCAG 2.2, 1.4.11
    assert contrast(style.INK) >= 7 and contrast(style.GREY) >= 4.5  # 1.4.3


@pytest.mark.parametrize("half", ["unsigned", "cold", "warm"])
def test_colour_maps_darken_evenly_away_from_zero(half):
    s = np.linspace(0, 1, 30)
    maps = {"unsigned": style.UNSIGNED(s), "cold": style.SIGNED(0.5 - s / 2)}
    lab = rgb2lab(maps.get(half, style.SIGNED(0.5 + s / 2))[None, :, :3])[0]
    steps = -np.diff(lab[:, 0])
    assert steps.min() > 0 and steps.max() < 1.5 * steps.min()


def test_a_list_of_matrices_is_drawn_as_their_batch():
    W = torch.randn(3, 2, 5)
    one, other = (style.png(pictures.features(given)) for given in (W, list(W)))
    assert one == other


def test_a_table_shows_three_digits_of_every_kind_of_number():
    cells = [1 / 3, np.float32(1 / 3), np.float64(1 / 3), 3, np.int64(3), True]
    assert repr(Table(list("abcdef"), [cells])).split()[6:] == ["0.333"] * 3 + ["3", "3", "True"]


# --- what bad input gets -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: pictures.strip(images(1)[0]), r"x\[None\]"),
        (lambda: pictures.strip(torch.zeros(1, 4, 8, 8)), "decode"),
        (lambda: pictures.strip(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), "uint8"),
        (lambda: pictures.strip(images(1) * torch.nan), "NaN"),
        (lambda: pictures.strip(images(2), ["one"]), "2 images need 2 labels; got 1"),
        (lambda: pictures.cards(images(2), rand(2, 3), NAMES), "7 names"),
        (lambda: pictures.ellipse(torch.eye(3), torch.ones(3), torch.eye(3)), r"U \(2, 2\)"),
        (lambda: pictures.stage(torch.eye(3), torch.eye(2), 1), r"A \(2, 2\) and V"),
        (lambda: pictures.diagram({"a": (0, 0, 1)}, []), r"takes boxes \(x, y"),
        (lambda: pictures.diagram({"a": (0, 0, 1, 0)}, []), r"height > 0"),
        (lambda: pictures.diagram({}, []), r"takes boxes"),
        (lambda: pictures.diagram({"a": (0, 0, 1, 1)}, [("a", "b", "")]), r"no box \['b'\]"),
        (lambda: pictures.cards(images(2), rand(2, 0), []), "0 names"),
        (lambda: pictures.features(torch.zeros(2, 5)), r"W \(B, 2, n\)"),
        (lambda: pictures.features(torch.zeros(0, 2, 5)), r"W \(B, 2, n\)"),
        (lambda: pictures.heat(-torch.ones(2, 2)), "signed=True"),
        (lambda: curves.spectrum(torch.tensor([1.0, torch.inf])), "infinite"),
        (lambda: style.picture(images(2)), "one image"),
        (lambda: pictures.strip(images(2), width=0), "width"),
        (lambda: style.png(GALLERY["strip"](), limit=500), "fewer pictures"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# --- in a notebook -------------------------------------------------------------------------------

NOTEBOOK = """
import base64, io
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from PIL import Image
shell = InteractiveShell.instance()
with capture_output() as out:
    shell.run_cell("from mathkit import draw; draw.use()")
    shell.run_cell("draw.spectrum([2.0, 1.0]); import matplotlib.pyplot as plt; plt.show()")
found = [o.data["image/png"] for o in out.outputs if "image/png" in o.data]
data = [d if isinstance(d, bytes) else base64.b64decode(d) for d in found]
print([(Image.open(io.BytesIO(d)).mode, Image.open(io.BytesIO(d)).width) for d in data])
"""


@pytest.mark.long
@pytest.mark.parametrize("scale, env, width", [("", "", 960), ("scale=2", "", 1920),
                                               ("", "2", 1920)])  # fmt: skip
def test_a_notebook_stores_figures_as_png_makes_them(tmp_path, scale, env, width):
    """Larger by `draw.use(scale=)`, and by what a deck for a projector is run with."""
    env = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline",
                        "IPYTHONDIR": str(tmp_path), "MATHKIT_SCALE": env}  # fmt: skip
    code = NOTEBOOK.replace("draw.use()", f"draw.use({scale})")
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == f"[('P', {width})]\n", done.stdout + done.stderr

"""Moving pictures in a notebook: `live` redraws with the kernel, `flipbook` moves without one.

    from mathkit import draw
    draw.live(at, t=(0, 900, 100, 500))           # at(t=500) -> a figure, an ax, an image
    draw.flipbook(frames, "strength", values=strengths, start=3, describe="The smile grows.")

`at` is a pure function, to be used and tested without any widget.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ipywidgets as W
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mathkit.arguments import integer
from mathkit.draw import acts, pictures, style
from mathkit.draw.moving import FlipBook, size

FRAME, TOTAL = 60_000, 600_000  # bytes of a picture, and of all in one flipbook
ALONE = (
    "These sliders redraw their picture with a running kernel: <code>make lab</code> starts one."
)


def frame(x: Any, limit: int = FRAME) -> bytes:
    """Anything that can be shown, as PNG bytes.

    Args:
        x: a figure or ax (then closed), an image (C, H, W), a batch of them, or PNG bytes.
        limit: bytes, at most.

    Returns: bytes.
    Raises TypeError on anything else, ValueError where the result is over `limit`.

    >>> from mathkit.draw import widgets
    >>> widgets.frame(torch.zeros(3, 8, 8))[1:4]
    b'PNG'
    """
    if isinstance(x, Tensor):
        x = style.picture(x) if x.ndim == 3 else pictures.strip(x)
    if isinstance(x, Figure | Axes):
        figure: Any = x.figure
        x = style.png(x, limit)
        plt.close(figure.figure)
    if not isinstance(x, bytes) or not x.startswith(b"\x89PNG"):
        raise TypeError(
            f"a picture is a figure, an ax, an image tensor or PNG bytes; got {type(x)}"
        )
    if len(x) > limit:
        raise ValueError(f"a picture of {len(x)} bytes is over {limit}: make it smaller, or fewer")
    return x


class Live(W.VBox):
    """The box of `live`; without a kernel a page shows its first picture and says what it needs."""

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(**kwargs)
        chosen = ", ".join(f"{name} {_text(knob.value)}" for name, knob in self.sliders.items())
        alt = html.escape(f"{self.describe} {chosen}".strip(), quote=True)
        picture = f"data:image/png;base64,{base64.b64encode(self.image.value).decode()}"
        still = f'<img src="{picture}" alt="{alt}" style="{_fit(self.image.value)}">'
        told = html.escape(f"{self.describe} ({chosen})".strip())
        said = f"{_paragraph(ALONE)}{still}{_paragraph(told)}"
        return {**bundle, "text/html": f'<div class="live">{said}</div>'}


def live(draw: Callable[..., Any], *, describe: str = "", **sliders: Any) -> Live:
    """Sliders above the picture that draw(**values) returns, redrawn when a slider is let go.

    Where draw fails later the error is shown and the picture stays. Without a kernel the first
    picture is shown, and that it needs one.

    Args:
        draw: returns what `frame` takes: a figure, an ax, an image, a batch of them, or PNG bytes.
        describe: what there is to see, in words.
        sliders: by the names of draw's arguments: (low, high), (low, high, step) or (low, high,
            step, start), ints or floats; a list of choices; or a widget with a `value`.

    Returns: the box, with `.sliders`, `.image` and `.status`.
    Raises ValueError for a slider that is none of these or starts outside its range, and whatever
    the first picture raises.
    Cost: one call of draw, and one for each change.

    >>> from mathkit import draw
    >>> box = draw.live(lambda t: torch.full((3, 8, 8), t / 999), t=(0, 999, 1, 500))
    >>> box.sliders["t"].value
    500
    """
    knobs = {name: _knob(name, spec) for name, spec in sliders.items()}

    def drawn() -> bytes:
        return frame(draw(**{name: knob.value for name, knob in knobs.items()}))

    def changed(_: Any) -> None:
        try:
            image.value, status.value = drawn(), ""
        except Exception as e:  # left alone it would go to a log that no reader sees
            status.value = _paragraph(html.escape(f"{type(e).__name__}: {e}"))

    image, status = _image(drawn()), W.HTML()
    for knob in knobs.values():
        knob.observe(changed, "value")
    words = [W.HTML(_paragraph(text)) for text in (ALONE, html.escape(describe))]
    box = Live([words[0], *knobs.values(), image, status, words[1]])
    box.sliders, box.image, box.status, box.describe = knobs, image, status, describe
    return box


def flipbook(
    frames: Iterable[Any],
    label: str = "frame",
    *,
    values: Sequence[Any] | None = None,
    start: int = 0,
    describe: str = "",
    interval: int = 200,
) -> FlipBook:
    """A slider and a play button over still frames, in plain HTML: no kernel is needed.

    Together the pictures stay under 600 kB, and they lie in the notebook.

    Args:
        frames: what `frame` takes, one by one (of a generator, given with values, each figure is
            drawn and closed in turn).
        label: beside the slider.
        values: what the slider shows for each frame; default their numbers from 0.
        start: the first frame seen.
        describe: what there is to see, in words; with label and value also each picture's alt text.
        interval: ms a frame.

    Returns: the flip book, with `.frames` (PNG bytes), `.values` (texts) and `.start`.
    Raises ValueError on fewer than 2 frames, values that do not match, a start outside, or a
    picture that is too large.

    >>> from mathkit import draw
    >>> frames = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 3, 8, 8)
    >>> book = draw.flipbook(frames, "grey", start=2, describe="From black to white.")
    >>> len(book.frames), book.values[book.start]
    (5, '2')
    """
    given = list(frames) if values is None else frames
    names = range(len(given)) if values is None else values  # type: ignore[arg-type]
    limit = min(FRAME, TOTAL // max(1, len(names)))
    drawn = tuple(frame(x, limit) for x in given)
    if not (len(drawn) == len(names) > 1 and 0 <= start < len(drawn)):
        raise ValueError(
            f"a flipbook needs 2 frames or more, a value each, and a start among them; got "
            f"{len(drawn)} frames, {len(names)} values, start {start}"
        )
    shown = tuple(_text(value) for value in names)
    return FlipBook(drawn, shown, label, start, describe, interval)


def rotate_stretch_rotate(M: Tensor, pages: int = 6, **flipbook_options: Any) -> FlipBook:
    """A flipbook of a real 2 x 2 matrix M = U^T diag(S) V in three acts.

    V turns v_1, v_2 into the axes, diag(S) stretches along the axes, U^T turns them to u_1, u_2.
    Where M mirrors the plane (det M < 0), the second stretch is -s_2, so that both turns are
    rotations.

    Args:
        M: (2, 2).
        pages: pictures of each act.
        flipbook_options: what else `flipbook` takes.

    Returns: the flip book, 1 + 3 pages frames.
    Raises ValueError for another shape, and pages < 1.
    Cost: a figure for each frame.

    >>> from mathkit import draw
    >>> book = draw.rotate_stretch_rotate(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), pages=1)
    >>> book.values
    ('before', 'rotate 1/1', 'stretch 1/1', 'rotate again 1/1')
    """
    names, stages, V = _acts(M.double(), integer(pages, "pages", 1))
    reach = 1.15 * max(1.0, float(torch.linalg.matrix_norm(M, 2)))
    frames = (pictures.stage(A, V, reach, name) for name, A in zip(names, stages, strict=True))
    return flipbook(frames, "", values=names, **flipbook_options)


def _acts(M: Tensor, pages: int) -> tuple[list[str], list[Tensor], Tensor]:
    """The name of each page, the matrix that has acted by then (the last is M), and V."""
    found, shares = acts.factors(M), range(1, pages + 1)
    names = [f"{act} {i}/{pages}" for act in ("rotate", "stretch", "rotate again") for i in shares]
    stages = [acts.acted(found, i / pages) for i in range(3 * pages + 1)]
    return ["before", *names], stages, found[2]


def _knob(name: str, spec: Any) -> Any:
    if isinstance(spec, W.Widget):
        return spec
    if isinstance(spec, list):
        options = [(_text(v), v) for v in spec]
        if any(isinstance(v, str) for v in spec):
            return W.Dropdown(options=options, description=name)
        return W.SelectionSlider(
            options=options, description=name, continuous_update=False, layout=_wide()
        )
    if not isinstance(spec, tuple) or not 2 <= len(spec) <= 4:
        raise ValueError(
            f"slider {name} is (low, high, step, start), a list or a widget; got {spec}"
        )
    whole = all(isinstance(x, int) for x in spec)
    low, high, step, start = _filled(spec, whole)
    if not low <= start <= high:
        raise ValueError(f"slider {name} starts at {start}, outside [{low}, {high}]")
    return (W.IntSlider if whole else W.FloatSlider)(
        value=start, min=low, max=high, step=step, description=name, continuous_update=False,
        layout=_wide(),
    )  # fmt: skip


def _filled(spec: tuple[Any, ...], whole: bool) -> tuple[Any, Any, Any, Any]:
    """(low, high, step, start) from its first entries: 50 steps, start on the middle one."""
    low, high, *rest = spec
    step = rest[0] if rest else max(1, (high - low) // 50) if whole else (high - low) / 50
    if not step > 0:
        raise ValueError(f"a slider has low < high and a step > 0, got {spec}")
    return low, high, step, rest[1] if len(rest) > 1 else low + int((high - low) / step / 2) * step


def _image(png: bytes) -> W.Image:
    # No tooltip for the description: an Image that has one cannot be shown (ipywidgets 8.1).
    return W.Image(value=png, format="png", layout=_wide(min(600, size(png)[0])))


def _fit(png: bytes) -> str:
    return f"width:100%;max-width:{min(600, size(png)[0])}px"


def _wide(most: int = 600) -> W.Layout:
    return W.Layout(width="100%", max_width=f"{most}px")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{float(value):.4g}"


def _paragraph(inner: str) -> str:
    return f"<p style='max-width: 600px'>{inner}</p>" if inner else ""

"""Frames become a film: `clip(frames, "x.mp4")`, also GIF and PNG files with transparency.

from mathkit.draw import film, scenes
film.clip(scenes.ellipse().frames(), "ellipse.mp4", fps=30)
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from mathkit import data
from mathkit.arguments import integer, number, told
from mathkit.draw import style

NUMBERED = re.compile(r"%0?\d*d")
SLACK = 1e-3  # rounding beyond [-1, 1]
Look = Callable[[np.ndarray, int, float], np.ndarray]


def clip(
    frames: Iterable[Any],
    path: str | Path,
    fps: float = 30,
    size: tuple[int, int] | None = None,
    look: Look | None = None,
    *,
    quality: int = 23,
    most: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write frames as a film; the end of the path says what kind.

    "x.mp4": H.264 that every browser plays, its index in front. "x.gif". "folder/" or
    "frame_%04d.png": a PNG file a frame, numbered from 0, with alpha where the frames have it.
    The file appears when it is finished: stopped or failing half-way, an older one stays as it was.

    Args:
        frames: one by one, all of one shape: images (3, H, W) or (4, H, W) in [-1, 1], arrays
            (H, W, 3 or 4) of uint8, or figures; a generator is read as it is written.
        path: "x.mp4", "x.gif", "folder/" or "frame_%04d.png"; folders are made.
        fps: frames a second, in [0.001, 240], of a GIF in [0.002, 50].
        size: (width, height); frames are scaled to fit and centred on black (on nothing, where
            they have alpha). None: their own size.
        look: called as look(frame, i, fps) on each (H, W, 3), as `tape.VHS()`.
        quality: of MP4, x264's crf: 0 is without loss, 18 fine, 28 small, 51 the worst.
        most: of MP4, bits a second at most.
        progress: called with the number of frames written, after each.

    Returns: the path.
    Raises ValueError for no frames, shapes that differ, values outside the range, an odd size of an
    MP4, transparency in a film or under a look, and an end it does not know; ImportError without
    PyAV; OSError where it cannot write.
    Cost: 720p about 30 frames a second on one core, besides what makes them.

    >>> import tempfile, torch
    >>> from mathkit.draw import film
    >>> grey = (torch.full((3, 48, 64), i / 9) for i in range(10))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     film.clip(grey, f"{folder}/grey.gif", fps=10).name
    'grey.gif'
    """
    target, write = _kind(path)
    gif = target.suffix.lower() == ".gif"  # which counts hundredths of a second, in 16 bits
    number(fps, "fps", *((0.002, 50) if gif else (0.001, 240)))
    integer(quality, "quality", 0, 51)
    if most is not None:
        integer(most, "most", 1000)
    if size is not None:
        size = pair(size, 2)
    if look is not None and (isinstance(look, type) or not callable(look)):
        raise ValueError(
            f"look is called as look(frame, i, fps), as tape.VHS(seed=0), got {look!r}"
        )
    if not isinstance(frames, Iterable) or hasattr(frames, "frames"):
        raise ValueError(
            f"frames come one by one, as scene.frames() or a list gives them, got {told(frames)}"
        )
    pages = _prepared(frames, fps, size, look, progress)
    how = {"crf": str(quality)}
    if most is not None:
        how |= {"maxrate": str(most), "bufsize": str(most)}
    with _whole(target) as part:
        write(pages, part, fps, how)
    return Path(path)


def pair(size: Any, least: int) -> tuple[int, int]:
    """size as (width, height) in whole pixels, else ValueError."""
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise ValueError(f"size is (width, height) in pixels, as (1920, 1080), got {size!r}")
    return integer(size[0], "width", least), integer(size[1], "height", least)


def rgb(frame: Any) -> np.ndarray:
    """One frame as (H, W, 3 or 4) of uint8.

    Args:
        frame: an image (3 or 4, H, W) in [-1, 1], an array (H, W, 3 or 4) of uint8, a figure, or a
            picture of Pillow's.

    Returns: the array.
    Raises ValueError on anything else, and values outside the range.

    >>> import torch
    >>> from mathkit.draw import film
    >>> int(film.rgb(torch.ones(3, 2, 2)).max())
    255
    """
    if isinstance(frame, Tensor):
        return _of_image(frame)
    if hasattr(frame, "canvas"):
        frame.canvas.draw()
        frame = np.array(frame.canvas.buffer_rgba())
    elif isinstance(frame, Image.Image):
        frame = np.array(frame.convert("RGBA" if frame.has_transparency_data else "RGB"))
    good = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3
    if not good or frame.shape[2] not in (3, 4) or not frame.size:
        raise ValueError(
            "a frame is an image (3 or 4, H, W) in [-1, 1], an array (H, W, 3 or 4) of uint8 or a "
            f"figure, got {_what(frame)}: of an array a in [0, 1] take "
            '(255 * a).round().astype("uint8")'
        )
    return frame


def _what(frame: Any) -> str:
    return f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else told(frame)


def _of_image(x: Tensor) -> np.ndarray:
    if x.ndim != 3 or x.shape[0] not in (3, 4) or not x.is_floating_point() or not x.numel():
        raise ValueError(f"a frame is one image (3 or 4, H, W) of floats in [-1, 1], got {told(x)}")
    low, high = (float(end) for end in x.detach().aminmax())
    if not -1 - SLACK <= low <= high <= 1 + SLACK:
        raise ValueError(
            f"a frame lies in [-1, 1], got values from {low:.3g} to {high:.3g}: frame.clamp(-1, 1) "
            "cuts what overshoots"
        )
    return style.pixels(x)


def _prepared(
    frames: Iterable[Any],
    fps: float,
    size: tuple[int, int] | None,
    look: Look | None,
    progress: Callable[[int], None] | None,
) -> Iterator[np.ndarray]:
    shape, i = None, -1
    for i, frame in enumerate(frames):
        page = rgb(frame)
        shape = shape or page.shape
        if page.shape != shape:
            raise ValueError(
                f"frames are of one shape: the first is {shape}, number {i} is {page.shape}"
            )
        page = page if size is None else _fitted(page, size)
        if look is not None:
            page = look(_opaque(page, "a look takes frames"), i, fps)
        yield page
        if progress is not None:
            progress(i + 1)
    if i < 0:
        raise ValueError("a film needs one frame at least, got none")


def _opaque(page: np.ndarray, what: str) -> np.ndarray:
    """The colours of a page through which nothing is seen."""
    if page.shape[2] == 4 and page[..., 3].min() < 255:
        raise ValueError(
            f"{what} without transparency, and these have it: write PNG files, as "
            'film.clip(frames, "folder/"), or draw them on a ground'
        )
    return np.ascontiguousarray(page[..., :3])


def _fitted(page: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = page.shape[:2]
    if (width, height) == size:
        return page
    share = min(size[0] / width, size[1] / height)
    inner = (max(1, round(width * share)), max(1, round(height * share)))
    small = Image.fromarray(page).resize(inner, Image.Resampling.LANCZOS)
    ground = Image.new(small.mode, size)
    ground.paste(small, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return np.asarray(ground)


def _kind(path: str | Path) -> tuple[Path, Any]:
    """The target and what writes it."""
    target = Path(path)
    if NUMBERED.search(target.name) and target.suffix.lower() == ".png":
        return target, _write_png
    ends = {".mp4": _write_mp4, ".gif": _write_gif}
    if target.suffix.lower() in ends:
        if target.suffix.lower() == ".mp4":
            _av()
        return target, ends[target.suffix.lower()]
    if str(path).endswith(("/", os.sep)) or target.is_dir():
        return target / "frame_%04d.png", _write_png
    raise ValueError(
        f"a film ends in .mp4 or .gif, or is a folder/ or frame_%04d.png of pictures; got {path}"
    )


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            'MP4 needs the package PyAV: pip install "av>=17" (GIF and PNG need nothing)'
        ) from error
    return av


@contextlib.contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A place beside the target to write to; what is there takes the target's place at the end."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        data.sweep(target.parent, r"\.film-(\d+)_\w+")
        part = Path(tempfile.mkdtemp(prefix=f".film-{os.getpid()}_", dir=target.parent))
    except OSError as error:
        raise OSError(
            error.errno, f"{target} cannot be written: {error.strerror}; name another folder"
        ) from error
    try:
        yield part / target.name
        made = sorted(file.name for file in part.iterdir())
        for name in made:
            os.replace(part / name, target.parent / name)
        for old in _numbered(target):
            if old.name not in made:  # the tail of a longer film that was here
                old.unlink()
    except OSError as error:
        raise OSError(
            error.errno,
            f"{target} could not be written: {error.strerror}; an older one stays as it was",
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _numbered(target: Path) -> list[Path]:
    """The files that are frames of this target, if it is a pattern."""
    if not NUMBERED.search(target.name):
        return []
    front, _, back = _parts(target.name)
    name = re.compile(rf"{re.escape(front)}\d+{re.escape(back)}")
    return [file for file in target.parent.iterdir() if name.fullmatch(file.name)]


def _parts(name: str) -> tuple[str, str, str]:
    """What stands before a pattern's number, the number, and what stands after it."""
    found = NUMBERED.search(name)
    assert found
    return name[: found.start()], found[0], name[found.end() :]


def _write_mp4(pages: Iterator[np.ndarray], path: Path, fps: float, how: dict[str, str]) -> None:
    av = _av()
    first = next(pages)
    height, width = first.shape[:2]
    if width % 2 or height % 2:
        raise ValueError(
            f"an MP4 has an even width and height, got {width} x {height}: "
            f"size=({width + width % 2}, {height + height % 2}) makes them so"
        )
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as box:
        stream = box.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = how
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709, as HD is
        context.color_range = 1
        for page in itertools.chain([first], pages):
            picture = av.VideoFrame.from_ndarray(_opaque(page, "an MP4 takes frames"))
            box.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709")))
        box.mux(stream.encode())


def _write_gif(pages: Iterator[np.ndarray], path: Path, fps: float, how: dict[str, str]) -> None:
    def small(page: np.ndarray) -> Image.Image:
        picture = Image.fromarray(_opaque(page, "a GIF takes frames"))
        return picture.quantize(256, Image.Quantize.MEDIANCUT)

    first = small(next(pages))
    wait = round(100 / fps) * 10  # ms; a GIF counts in hundredths of a second
    how_long: dict[str, Any] = {"duration": wait, "loop": 0}
    with open(path, "wb") as file:  # Pillow would not close it where the frames stop
        first.save(file, "GIF", save_all=True, append_images=map(small, pages), **how_long)


def _write_png(pages: Iterator[np.ndarray], path: Path, fps: float, how: dict[str, str]) -> None:
    front, form, back = _parts(path.name)
    for i, page in enumerate(pages):
        place = path.with_name(f"{front}{form % i}{back}")
        Image.fromarray(page).save(place, compress_level=3)

"""The look of an old video cassette, as a pure function of a frame and its number.

    from mathkit.draw import film, tape
    film.clip(frames, "x.mp4", fps=30, look=tape.VHS(seed=0))

A cassette keeps brightness sharper than colour: about 240 dots of a line against 40. The rest is
mechanics: heads that switch at the bottom, a band where the track is lost, dust, scan lines.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mathkit.arguments import integer, number, tensor, told
from mathkit.draw import style

OSD = (242, 242, 234)  # of the counter, drawn by the recorder and not on the tape


@dataclasses.dataclass(frozen=True)
class VHS:
    """A video cassette: look(frame, i) is frame number i as the tape gives it back.

    Each line keeps `luma` samples of its brightness and `chroma` of its colour, the colour late by
    `delay`. Frame i depends on (seed, i) and the frame alone, whatever was played before.

    Args:
        seed: of the noise.
        strength: 0 gives the frame as it is, 1 a worn tape; between, every fault is smaller.
        luma: samples of brightness a line, >= 2.
        chroma: samples of colour a line, >= 2.
        delay: of the colour, in widths of the picture.
        noise: standard deviation of the brightness, in [0, 1].
        jitter: standard deviation of a line's place, in widths.
        roll: seconds in which the band of lost tracking climbs the picture; 0: no band.
        dropouts: white streaks a frame, on average.
        scan: scan lines of the picture; 0: none are seen.
        counter: what stands in the corner beside the time code; "": neither.

    Raises ValueError for numbers of another kind, and a frame that is none.
    Cost: 720p in about 30 ms on one core.
    Source: bandwidths of VHS, 3 MHz of brightness and .5 MHz of colour in a line of 52 us.

    >>> from mathkit.draw import tape
    >>> grey = torch.zeros(3, 48, 64)
    >>> worn = tape.VHS(seed=1)(grey, 5)
    >>> worn.shape, bool(torch.equal(tape.VHS(strength=0)(grey, 5), grey))
    (torch.Size([3, 48, 64]), True)
    """

    seed: int = 0
    strength: float = 1.0
    luma: int = 360
    chroma: int = 44
    delay: float = 0.005
    noise: float = 0.035
    jitter: float = 0.0004
    roll: float = 8.0
    dropouts: float = 1.5
    scan: int = 240
    counter: str = "PLAY \u25b6"

    def __post_init__(self) -> None:
        integer(self.seed, "seed")
        number(self.strength, "strength", 0, 1)
        for name in ("luma", "chroma"):
            integer(getattr(self, name), name, 2)
        integer(self.scan, "scan")
        for name, most in {"delay": 0.1, "noise": 1, "jitter": 0.1, "roll": 1e6}.items():
            number(getattr(self, name), name, 0, most)
        number(self.dropouts, "dropouts", 0, 1000)

    def __call__(self, frame: Any, i: int = 0, fps: float = 30) -> Any:
        """The frame as the tape gives it back.

        Args:
            frame: an image (3, H, W) in [-1, 1], or an array (H, W, 3) of uint8.
            i: its number, from 0.
            fps: frames a second, for the time code and the band.

        Returns: as the frame came: shape, dtype, range.
        """
        integer(i, "i")
        number(fps, "fps", 1e-3)
        if isinstance(frame, Tensor):
            return self._of_tensor(frame, i, fps)
        if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3):
            raise ValueError(
                f"a frame is an array (H, W, 3) of uint8 or an image (3, H, W), got {told(frame)}"
            )
        if frame.shape[2] != 3:
            raise ValueError(f"a tape has no alpha: a frame is (H, W, 3), got {frame.shape}")
        return self._played(frame, i, fps) if self.strength else frame

    def _of_tensor(self, x: Tensor, i: int, fps: float) -> Tensor:
        tensor(x, "frame", "(3, H, W)")
        if x.ndim != 3 or x.shape[0] != 3 or not x.is_floating_point():
            raise ValueError(f"a frame is an image (3, H, W) of floats, got {told(x)}")
        if not self.strength:
            return x
        out = self._played(style.pixels(x), i, fps)
        return (torch.from_numpy(out).permute(2, 0, 1).double() / 127.5 - 1).to(x)

    def _played(self, frame: np.ndarray, i: int, fps: float) -> np.ndarray:
        rng = np.random.default_rng([self.seed, i])
        height, width = frame.shape[:2]
        y, cb, cr = Image.fromarray(frame).convert("YCbCr").split()
        shifts, lost = self._mechanics(rng, height, width, i / fps)
        late = round(self.strength * self.delay * width)
        bright = _shifted(self._brightness(y, rng, lost), shifts)
        colours = (_shifted(self._colour(c, rng), shifts + late) for c in (cb, cr))
        self._streaks(bright, rng)
        if self.scan:
            step = max(2, round(height / self.scan))
            dark = round(256 * (1 - 0.13 * self.strength))
            bright[::step] = bright[::step].astype(np.uint16) * dark >> 8
        planes = [Image.fromarray(a) for a in (bright, *colours)]
        out = Image.merge("YCbCr", planes).convert("RGB")
        if self.counter:
            self._write(out, i / fps)
        return np.array(out)

    def _kept(self, samples: int, width: int) -> int:
        """Samples a line: all of them at strength 0, as given at 1."""
        return max(2, round(width * min(1.0, samples / width) ** self.strength))

    def _brightness(self, y: Image.Image, rng: np.random.Generator, lost: np.ndarray) -> np.ndarray:
        width, height = y.size
        few = self._kept(self.luma, width)
        a = np.asarray(y.resize((few, height), Image.Resampling.BOX)).astype(np.float32)
        soft = np.asarray(y.resize((max(2, few // 4), height), Image.Resampling.BOX))
        blur = Image.fromarray(soft).resize((few, height), Image.Resampling.BILINEAR)
        a += 0.3 * self.strength * (a - np.asarray(blur))  # the recorder's own sharpening
        level = 255 * self.strength * self.noise
        a += level * rng.standard_normal(a.shape, dtype=np.float32)
        a += 0.3 * level * rng.standard_normal((height, 1), dtype=np.float32)
        snow = rng.random((int(lost.sum()), few), dtype=np.float32)
        a[lost] += 200 * self.strength * (snow > 0.86)
        small = Image.fromarray(np.clip(a, 0, 255).astype(np.uint8))
        return np.array(small.resize((width, height), Image.Resampling.BICUBIC))

    def _colour(self, c: Image.Image, rng: np.random.Generator) -> np.ndarray:
        width, height = c.size
        few = self._kept(self.chroma, width)
        a = np.asarray(c.resize((few, height), Image.Resampling.BOX)).astype(np.float32)
        a += 255 * 0.8 * self.strength * self.noise * rng.standard_normal(a.shape, np.float32)
        small = Image.fromarray(np.clip(a, 0, 255).astype(np.uint8))
        return np.array(small.resize((width, height), Image.Resampling.BILINEAR))

    def _mechanics(
        self, rng: np.random.Generator, height: int, width: int, seconds: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """How far each line is moved to the right, in pixels, and which lines lost their track."""
        line = np.arange(height)
        place = self.jitter * rng.standard_normal(height)
        place += 2 * self.jitter * np.sin(5 * line / height + 3 * seconds)
        lost = np.zeros(height, bool)
        if self.roll:
            climbed = 1.2 - 1.4 * ((seconds / self.roll + 0.85) % 1.0)
            lost = abs(line / height - climbed) < 0.022
            place[lost] += 0.02 * rng.uniform(-1, 1, int(lost.sum()))
        foot = max(1, height // 72)  # where the two heads take turns
        bend = np.linspace(0, 1, foot) ** 2
        place[-foot:] += (0.4 * self.jitter**0.5 + 0.01 * rng.random()) * bend if self.jitter else 0
        return np.rint(self.strength * place * width).astype(int), lost

    def _streaks(self, bright: np.ndarray, rng: np.random.Generator) -> None:
        height, width = bright.shape
        for _ in range(rng.poisson(self.strength * self.dropouts)):
            row, left = int(rng.integers(height)), int(rng.integers(width))
            thick, far = max(1, height // 360), int(width * rng.uniform(0.01, 0.08))
            fade = np.linspace(235, 120, far)[: width - left]
            part = bright[row : row + thick, left : left + far]
            part[:] = np.maximum(part, fade.astype(np.uint8))

    def _write(self, out: Image.Image, seconds: float) -> None:
        width, height = out.size
        font, margin = _font(max(8, height // 22)), height // 16
        whole = int(seconds)
        code = f"SP {whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
        pen = ImageDraw.Draw(out)
        for text, corner, anchor in (
            (self.counter, (margin, margin), "la"),
            (code, (width - margin, margin), "ra"),
        ):
            edge = max(1, height // 360)
            pen.text(corner, text, OSD, font, anchor, stroke_width=edge, stroke_fill=(20, 20, 24))


@functools.lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import font_manager

    mono = font_manager.FontProperties(family="DejaVu Sans Mono", weight="bold")
    return ImageFont.truetype(font_manager.findfont(mono), size)


def _shifted(a: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Each line moved to the right by its own number of pixels; the ends are filled."""
    width = a.shape[1]
    most = min(int(abs(shifts).max()), width)
    if not most:
        return a
    wide = np.pad(a, ((0, 0), (most, most)), "edge")
    out = np.empty_like(a)
    for row, start in enumerate(most - shifts.clip(-most, most)):
        out[row] = wide[row, start : start + width]
    return out

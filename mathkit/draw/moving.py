"""A flip book: pictures, a slider and a play button in plain HTML, so that no kernel is needed."""

from __future__ import annotations

import base64
import html
import io
import json
import textwrap
from dataclasses import dataclass
from typing import Any

from matplotlib import font_manager

from mathkit.draw import style

# `pages` holds [value, picture] of each page. Arrows, space and Enter stay inside: a slide show
# would turn its own page by them.
SCRIPT = """(() => {
  const book = document.currentScript.closest(".flipbook"), pages = %s;
  const [img, button, range, output, bar, note] = ["img", "button", "input", "output",
    ".flipbook-bar", ".flipbook-note"].map(name => book.querySelector(name));
  const { label, told, pause } = book.dataset;
  let timer = 0;
  const turn = i => {
    const [value, picture] = pages[range.value = i], shown = (label + " " + value).trim();
    img.src = picture;
    img.alt = (told + " " + shown).trim();
    output.value = value;
    range.setAttribute("aria-valuetext", shown);
  };
  const play = on => {
    clearInterval(timer);
    timer = on && setInterval(
      () => book.isConnected ? turn((+range.value + 1) %% pages.length) : play(0), +pause);
    button.setAttribute("aria-pressed", !!on);
  };
  button.onclick = () => play(button.getAttribute("aria-pressed") === "false");
  range.oninput = () => { play(0); turn(+range.value); };
  book.onkeydown = e => { if (/^(Arrow.*| |Enter)$/.test(e.key)) e.stopPropagation(); };
  turn(+book.dataset.start);
  note.remove();
  bar.style.display = "flex";
})()"""

PAGE = """<figure class="flipbook" role="group" aria-label="{name}"
 data-lm-suppress-shortcuts="true" data-label="{label}" data-told="{told}"
 data-pause="{pause}" data-start="{start}"
 style="margin:0;max-width:{width}px">
<img src="{src}" alt="{alt}" style="display:block;width:100%;{sharp}">
<div class="flipbook-bar" style="display:none;align-items:center;gap:.6em;flex-wrap:wrap">
<button type="button" aria-pressed="false">Play</button>
<label style="display:flex;flex:1;align-items:center;gap:.6em;min-width:10em"><span>{knob}</span>
<input type="range" min="0" max="{last}" value="{start}" aria-valuetext="{shown}"
 autocomplete="off" style="flex:1;min-width:6em"></label>
<output aria-live="off" style="min-width:4em">{value}</output>
</div>
<figcaption>{told}</figcaption>
<p class="flipbook-note"><em>One of {count} pictures: they move in the web book, and in
JupyterLab once the cell is run.</em></p>
<script>{script}</script>
</figure>"""

WIDTH, HEIGHT, SMALL = 600, 400, 480  # the largest picture; below SMALL pixels enlarged as squares


@dataclass(frozen=True, repr=False)
class FlipBook:
    """Pictures to leaf through: what `draw.flipbook` gives.

    In a page it is HTML that holds its pictures; where HTML may not move, the picture of `start`,
    and above it which one that is.

    Args:
        frames: PNG bytes of each picture.
        values: what the slider shows for each.
        label: beside the slider.
        start: the first picture seen.
        describe: what there is to see, in words.
        interval: ms a picture.
    """

    frames: tuple[bytes, ...]
    values: tuple[str, ...]
    label: str = "frame"
    start: int = 0
    describe: str = ""
    interval: int = 200

    @property
    def shown(self) -> str:
        """What is said of the picture seen first."""
        return f"{self.label} {self.values[self.start]}".strip()

    def __repr__(self) -> str:
        return f"[one of {len(self.frames)} pictures of a flip book: {self.shown}]"

    def _repr_png_(self) -> bytes:
        words = f"{self.shown}: one of {len(self.frames)} pictures"
        return titled(self.frames[self.start], words)

    def _repr_html_(self) -> str:
        sources = [_source(png) for png in self.frames]
        pages = json.dumps(list(zip(self.values, sources, strict=True))).replace("</", r"<\/")
        wide, high = size(self.frames[self.start])
        words = {
            "name": self.describe or f"Flip book: {self.label or 'pages'}", "label": self.label,
            "told": self.describe, "shown": self.shown, "value": self.values[self.start],
            "alt": f"{self.describe} {self.shown}".strip(), "knob": self.label or "page",
        }  # fmt: skip
        return PAGE.format(
            **{name: html.escape(text) for name, text in words.items()},
            src=sources[self.start], script=SCRIPT % pages, pause=self.interval, start=self.start,
            last=len(self.frames) - 1, count=len(self.frames),
            width=min(WIDTH, HEIGHT * wide // high),
            sharp="image-rendering:pixelated" if wide < SMALL else "",
        )  # fmt: skip


def size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG, from its header."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def titled(png: bytes, words: str) -> bytes:
    """A PNG with words above it, on paper."""
    from PIL import Image, ImageDraw, ImageFont

    picture: Any = Image.open(io.BytesIO(png))
    few, wide, picture = picture.mode == "P", picture.width, picture.convert("RGB")
    letters = 12 if wide < SMALL else 22
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), letters)
    text = textwrap.fill(words, max(10, int(wide / (0.62 * letters))))
    high = round(1.3 * letters * (text.count("\n") + 1)) + letters // 2
    page = Image.new("RGB", (wide, high + picture.height), style.PAPER)
    page.paste(picture, (0, high))
    pen = ImageDraw.Draw(page)
    pen.multiline_text((letters // 2, letters // 4), text, style.INK, font)
    return style.palette(page, 256) if few else style.packed(page)


def _source(png: bytes) -> str:
    """A picture as data address: lossless WebP (a fifth smaller) or, where that is less, itself."""
    from PIL import Image

    packed = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(
        packed, "webp", lossless=True, method=2, quality=50
    )
    kind, data = min(("png", png), ("webp", packed.getvalue()), key=lambda pair: len(pair[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

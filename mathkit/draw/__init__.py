"""Pictures in one style, still and moving: `from mathkit import draw`."""

from typing import Any

from mathkit.draw import style as style
from mathkit.draw.curves import over_time, spectrum, tradeoff
from mathkit.draw.pictures import cards, diagram, ellipse, features, heat, stage, strip
from mathkit.draw.stills import still
from mathkit.draw.style import SIGNED, UNSIGNED, png, use
from mathkit.draw.table import Table
from mathkit.draw.widgets import flipbook, live, rotate_stretch_rotate

COLOURS = ("ACCENT", "BLUE", "CYCLE", "FAINT", "GREEN", "GREY", "INK", "PAPER", "PURPLE")


def __getattr__(name: str) -> Any:
    if name in COLOURS:  # of the ground that `use` has chosen last
        return getattr(style, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ACCENT",
    "BLUE",
    "CYCLE",
    "FAINT",
    "GREEN",
    "GREY",
    "INK",
    "PAPER",
    "PURPLE",
    "SIGNED",
    "UNSIGNED",
    "Table",
    "cards",
    "diagram",
    "ellipse",
    "features",
    "flipbook",
    "heat",
    "live",
    "over_time",
    "png",
    "rotate_stretch_rotate",
    "spectrum",
    "stage",
    "still",
    "strip",
    "tradeoff",
    "use",
]

"""Pictures in one style, still and moving: `from mathkit import draw`."""

from mathkit.draw.curves import over_time, spectrum, tradeoff
from mathkit.draw.pictures import cards, ellipse, features, heat, stage, strip
from mathkit.draw.style import (
    ACCENT,
    BLUE,
    CYCLE,
    FAINT,
    GREEN,
    GREY,
    INK,
    PAPER,
    PURPLE,
    SIGNED,
    UNSIGNED,
    png,
    use,
)
from mathkit.draw.table import Table
from mathkit.draw.widgets import flipbook, live, rotate_stretch_rotate

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
    "strip",
    "tradeoff",
    "use",
]

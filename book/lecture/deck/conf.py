"""Sphinx settings of the decks: the book's words and mathematics, shown by reveal.js."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from book.conf import (  # noqa: F401
    author,
    copyright,
    mathjax_path,
    myst_enable_extensions,
    project,
)

extensions = ["myst_parser", "sphinx_revealjs"]
suppress_warnings = ["toc.not_included"]  # a deck is a page of its own
html_copy_source = False
# Each formula holds its own glyphs: the notes window gets them by themselves.
mathjax3_config = {"svg": {"fontCache": "local"}, "options": {"enableMenu": False}}

revealjs_html_theme = "revealjs-simple"
revealjs_static_path = ["../../_static", "static"]
revealjs_style_theme = "deck.css"
revealjs_script_files = ["deck.js"]
revealjs_script_plugins = [
    {"src": "revealjs/plugin/notes/notes.js", "name": "RevealNotes"},
]
revealjs_script_conf = {
    "width": 1280,
    "height": 720,
    "margin": 0,
    "center": False,
    "controls": False,
    "defaultTiming": 0,
    "display": "flex",
    "hash": True,
    "pdfMaxPagesPerSlide": 1,
    "pdfSeparateFragments": False,
    "showNotes": False,
    "slideNumber": "c/t",
    "transition": "none",
    "viewDistance": 100,  # every slide is laid out, and can be made to fit
}

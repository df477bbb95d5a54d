"""Sphinx settings of the decks: the book's words and mathematics, shown by reveal.js."""

from book.lecture.common import *  # noqa: F403

extensions = ["myst_parser", "sphinx_revealjs"]
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

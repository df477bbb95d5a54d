"""Sphinx settings of the handouts: A4, black on white, nothing around the text."""

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

extensions = ["myst_parser"]
suppress_warnings = ["toc.not_included"]  # a sheet is a page of its own
mathjax3_config = {"svg": {"fontCache": "global"}, "options": {"enableMenu": False}}

html_theme = "basic"
html_theme_options = {"nosidebar": True}
html_static_path = ["../../_static", "static"]
html_css_files = ["sheet.css"]
html_title = ""
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_show_sphinx = False
html_use_index = False
pygments_style = "bw"

"""Sphinx settings of the handouts: A4, black on white, nothing around the text."""

from book.lecture.common import *  # noqa: F403

extensions = ["myst_parser"]
mathjax3_config = {"svg": {"fontCache": "global"}, "options": {"enableMenu": False}}

html_theme = "basic"
html_theme_options = {"nosidebar": True}
html_static_path = ["../../_static", "static"]
html_css_files = ["sheet.css"]
html_title = ""
html_show_sourcelink = False
html_show_copyright = False
html_show_sphinx = False
html_use_index = False
pygments_style = "bw"

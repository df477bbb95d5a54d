"""Sphinx settings of the web book: nothing is executed here and nothing comes from a network."""

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent.parent))

project = "Treating ALICE"
author = "The mathkit authors"
copyright = "2026, The mathkit authors. Text and figures CC BY 4.0, code MIT"

extensions = [
    "myst_nb",
    "sphinx_copybutton",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_codeautolink",
    "book.doctree",
]
root_doc = "index"

nb_execution_mode = "off"
nb_render_markdown_format = "gfm"  # tables in Markdown outputs
nb_merge_streams = True
nb_number_source_lines = False
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_param = False
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

METHODS = "push pull T shape passes dense scipy".split()
codeautolink_concat_default = True
codeautolink_global_preface = "import mathkit as mk"
codeautolink_inventory_map = {  # what a name in code leads to, where its own place has no entry
    "mathkit.puppets": "mathkit.show.puppets",
    "mathkit.puppets.FACTORS": "mathkit.show.puppets.FACTORS",
    **{f"mathkit.linear.linear_map.LinearMap.{m}": f"mathkit.LinearMap.{m}" for m in METHODS},
}

mathjax_path = "vendor/tex-svg.js"
mathjax3_config = {"svg": {"fontCache": "global"}, "options": {"enableMenu": False}}
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # no page asks for a kernel

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = [("book.js", {"defer": "defer"})]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_use_index = False
pygments_style = "default"
pygments_dark_style = "monokai"

TYPEWRITER = "'Courier Prime', 'Courier New', monospace"
html_theme_options = {
    "light_css_variables": {
        "font-stack": "Charter, 'Iowan Old Style', 'Palatino Linotype', Georgia, serif",
        "font-stack--monospace": "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace",
        "font-stack--headings": TYPEWRITER,
        "color-background-primary": "#faf7f0",
        "color-background-secondary": "#f1ece0",
        "color-foreground-primary": "#23211d",
        "color-foreground-secondary": "#56524a",
        "color-brand-primary": "#0b5d73",
        "color-brand-content": "#0b5d73",
        "color-brand-visited": "#5b4a86",
        "color-highlight-on-target": "#f6e8c4",
        "color-api-name": "#0b5d73",
        "color-api-pre-name": "#56524a",
        "sheet": "0",
        "sheet-shadow": "none",
        "scheme": "light",
    },
    "dark_css_variables": {
        "color-background-primary": "#22262a",
        "color-background-secondary": "#1b1e21",
        "color-foreground-primary": "#e4dfd4",
        "color-foreground-secondary": "#aaa59a",
        "color-brand-primary": "#7cc3d8",
        "color-brand-content": "#7cc3d8",
        "color-brand-visited": "#b9a6e8",
        "color-highlight-on-target": "#3b3626",
        "color-api-name": "#7cc3d8",
        "color-api-pre-name": "#aaa59a",
        "color-foreground-muted": "#a09b90",
        "sheet": "0.5rem",
        "sheet-shadow": "0 2px 10px #000a",
        "scheme": "dark",
    },
}


def as_rst(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings are plain text with `code` in it: *, | and _ mean themselves."""
    example = False
    for i, line in enumerate(lines):
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        if not example:
            parts = re.split(r"`([^`]+)`", line)
            parts[::2] = [re.sub(r"([\\*|]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
            parts[1::2] = [f"``{part}``" for part in parts[1::2]]
            lines[i] = "".join(parts)


def read_again(app: Sphinx, *_: Any) -> list[str]:
    """What is written again: sphinx-codeautolink links only what was read in the same build."""
    return list(app.builder.get_outdated_docs())


def setup(app: Sphinx) -> None:
    app.connect("env-get-outdated", read_again)
    app.connect("autodoc-process-docstring", as_rst, priority=400)

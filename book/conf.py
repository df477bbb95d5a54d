"""Sphinx settings of the web book: nothing is executed here and nothing comes from a network."""

project = "Treating ALICE"
author = "The mathkit authors"
copyright = "2026, The mathkit authors. Text and figures CC BY 4.0, code MIT"

extensions = ["myst_nb", "sphinx_copybutton"]
root_doc = "index"

nb_execution_mode = "off"
nb_render_markdown_format = "gfm"  # tables in Markdown outputs
nb_merge_streams = True
nb_number_source_lines = False
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

mathjax_path = "vendor/tex-svg.js"
mathjax3_config = {"svg": {"fontCache": "global"}, "options": {"enableMenu": False}}
nb_ipywidgets_js: dict[str, dict[str, str]] = {"widgets-offline.js": {}, "vendor/embed.js": {}}

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["book.css"]
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
    },
    "dark_css_variables": {
        "color-background-primary": "#22262a",
        "color-background-secondary": "#1b1e21",
        "color-foreground-primary": "#e4dfd4",
        "color-foreground-secondary": "#aaa59a",
        "color-brand-primary": "#7cc3d8",
        "color-brand-content": "#7cc3d8",
        "color-brand-visited": "#b9a6e8",
    },
}

"""What decks and handouts have in common: the book's words and mathematics, each page by itself."""

from book.conf import author, copyright, mathjax_path, myst_enable_extensions, project

__all__ = [
    "author",
    "copyright",
    "html_copy_source",
    "mathjax_path",
    "myst_enable_extensions",
    "project",
    "suppress_warnings",
]

html_copy_source = False
suppress_warnings = ["toc.not_included"]  # no page is in a table of contents

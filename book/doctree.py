"""Words for every picture of a page, and the names in the reference as a reader calls them."""

import html
import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

NAMED = re.compile(r'(<figure class="flipbook" role="group" aria-label|<img [^>]*alt)="[^"]*"')
PICTURES = ('class="flipbook"', 'class="live"')


def elements(within: nodes.Element, kind: str) -> Iterator[nodes.Element]:
    return (n for n in within.findall(nodes.container) if n.get("nb_element") == kind)


def described(app: Sphinx, doctree: nodes.document) -> None:
    """Each picture gets the words of its cell's metadata `alt`, in order; a flip book counts as
    one, and its pages keep the words of their own."""
    for cell in elements(doctree, "cell_code"):
        words = iter(cell["cell_metadata"].get("alt", []))
        for bundle in elements(cell, "mime_bundle"):
            images = list(bundle.findall(nodes.image))
            pages = [n for n in bundle.findall(nodes.raw) if any(k in n.astext() for k in PICTURES)]
            if images or pages:
                name(images, pages, next(words, ""))


def name(images: list[nodes.image], pages: list[nodes.raw], alt: str) -> None:
    for image in images:
        image["alt"] = alt
    said = html.escape(alt)
    for raw in pages if alt else []:
        text = NAMED.sub(lambda found: f'{found[1]}="{said}"', raw.astext(), count=1)
        raw[:] = [nodes.Text(text)]


def as_called(app: Sphinx, doctree: nodes.document) -> None:
    """`mathkit.svd` is headed `mk.svd`, and `mathkit.linear.metric.gram` `metric.gram`."""
    for node in doctree.findall(addnodes.desc_addname):
        module = node.astext().rstrip(".").split(".")[-1]
        node[:] = [nodes.Text(f"{'mk' if module == 'mathkit' else module}.")]


def setup(app: Sphinx) -> dict[str, Any]:
    for cure in (described, as_called):
        app.connect("doctree-read", cure)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Outputs as they are committed: the same bytes from the same run, readable without a kernel."""

import re
from typing import Any

import nbformat

from book.execute import fingerprint
from book.paths import ROOT

VIEW = "application/vnd.jupyter.widget-view+json"
PICTURE = re.compile(r"(data:[\w/+]+;base64,[A-Za-z0-9+/=]+)")  # in it "/" is no folder
LANGUAGE = {
    "name": "python", "file_extension": ".py", "mimetype": "text/x-python",
    "pygments_lexer": "ipython3",
}  # fmt: skip
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def scrub(text: str) -> str:
    """No machine in the text: addresses, folders and temporary cell files go; pictures stay."""
    parts = PICTURE.split(text)
    parts[::2] = map(scrub_words, parts[::2])
    return "".join(parts)


def scrub_words(text: str) -> str:
    text = re.sub(r" at 0x[0-9a-f]{6,}", "", text)
    text = re.sub(r"\S*/ipykernel_\d+/\d+\.py", "<cell>", text)
    text = re.sub(r"(?<![\w.])/[^\s:\"']*/site-packages/", "", text)
    return text.replace(f"{ROOT}/", "")


def scrub_output(output: Any) -> Any:
    """Without machine, and without the view of a widget: what it shows with no kernel stays."""
    output.get("data", {}).pop(VIEW, None)
    if "text" in output:
        output["text"] = scrub(output["text"])
    for kind, value in output.get("data", {}).items():
        if kind.startswith("text/") and isinstance(value, str):
            output["data"][kind] = scrub(value)
    return output


def normalise(nb: Any) -> Any:
    """The notebook without clocks, random ids, versions and widget state; idempotent."""
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [scrub_output(output) for output in cell.outputs]
    for name in ("widgets", "mathkit_run"):
        nb.metadata.pop(name, None)
    nb.metadata.update(kernelspec=dict(KERNEL), language_info=dict(LANGUAGE))
    return nb


def stamped(nb: Any) -> Any:
    """The notebook with the fingerprint of what its outputs came from."""
    nb.metadata["mathkit"] = {**nb.metadata.get("mathkit", {}), "fingerprint": fingerprint(nb)}
    return nb


def text(nb: Any) -> str:
    return str(nbformat.writes(nb)).rstrip("\n") + "\n"

"""Outputs as they are committed: the same bytes from the same run, readable without a kernel."""

import re
from typing import Any

import nbformat

from book.execute import fingerprint
from book.paths import ROOT

VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
LANGUAGE = {
    "name": "python", "file_extension": ".py", "mimetype": "text/x-python",
    "pygments_lexer": "ipython3",
}  # fmt: skip
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
STILL = "[a still of the interactive figure; it moves in the web book and in JupyterLab]"


def widget_models(nb: Any) -> dict[str, Any]:
    models: dict[str, Any] = nb.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    return models


def still(models: dict[str, Any], name: str) -> str | None:
    """The first picture of a widget tree, base64: an image, an output, a stack's chosen child."""
    model = models.get(name.removeprefix("IPY_MODEL_"), {})
    state, kind = model.get("state", {}), model.get("model_name", "")
    if kind == "ImageModel":
        return next((b["data"] for b in model.get("buffers", []) if b["path"] == ["value"]), None)
    if kind == "OutputModel":
        data = (output.get("data", {}) for output in state.get("outputs", []))
        return next((d["image/png"] for d in data if "image/png" in d), None)
    children = state.get("children", [])
    if kind == "StackModel":
        children = [children[state["selected_index"] or 0]] if children else []
    return next((found for child in children if (found := still(models, child))), None)


def lift(output: Any, models: dict[str, Any]) -> Any:
    """A widget's view replaced by a still of it."""
    view = output.get("data", {}).pop(VIEW, None)
    if view is None:
        return output
    picture = still(models, view["model_id"])
    output["data"] = {"text/plain": STILL, **({"image/png": picture} if picture else {})}
    return output


def scrub(text: str) -> str:
    """No machine in the text: addresses, folders and temporary cell files go."""
    text = re.sub(r" at 0x[0-9a-f]{6,}", "", text)
    text = re.sub(r"\S*/ipykernel_\d+/\d+\.py", "<cell>", text)
    text = re.sub(r"(?<![\w.])/[^\s:\"']*/site-packages/", "", text)
    return text.replace(f"{ROOT}/", "")


def scrub_output(output: Any) -> Any:
    if "text" in output:
        output["text"] = scrub(output["text"])
    for kind, value in output.get("data", {}).items():
        if kind.startswith("text/") and isinstance(value, str):
            output["data"][kind] = scrub(value)
    return output


def normalise(nb: Any) -> Any:
    """The notebook without clocks, random ids, versions and widget state; idempotent."""
    models = widget_models(nb)
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [scrub_output(lift(output, models)) for output in cell.outputs]
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

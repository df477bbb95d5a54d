"""The laboratory's JavaScript, called from Python: in a blank page from disk, without a network."""

import base64
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from test_book import browsing
from torch import Tensor

from book.laboratory import pack
from book.paths import ROOT

FOLDER = pack.FOLDER
BRIDGE = """
const ARRAYS = { Float32Array, Float64Array, Uint8Array, Uint32Array };
function fromPython(value) {
  if (Array.isArray(value)) return value.map(fromPython);
  if (value === null || typeof value !== "object") return value;
  if (!value.kind) return Object.fromEntries(
    Object.entries(value).map(([key, one]) => [key, fromPython(one)]));
  const bytes = Uint8Array.from(atob(value.base64), (letter) => letter.charCodeAt(0));
  return new ARRAYS[value.kind](bytes.buffer);
}
function toPython(value) {
  if (value === undefined || typeof value === "function") return null;
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map(toPython);
  const kind = value.constructor.name;
  if (!ARRAYS[kind]) return Object.fromEntries(
    Object.entries(value).map(([key, one]) => [key, toPython(one)]));
  const bytes = new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768)
    text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return { kind, base64: btoa(text) };
}
"""
WORKER = """
function startWorker(source, parts) {
  const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const heard = new Map(), ended = new Map();
  let asked = 0;
  worker.onmessage = ({ data }) => {
    heard.get(data.id).push(data);
    if (data.state !== "running") ended.get(data.id)(heard.get(data.id));
  };
  globalThis.ask = (op, job) => {
    const id = asked++;
    heard.set(id, []);
    worker.postMessage({ id, op, ...job });
    return new Promise(done => ended.set(id, done));
  };
  return ask("wake", { parts });
}
"""
KINDS = {
    "Float32Array": np.float32,
    "Float64Array": np.float64,
    "Uint8Array": np.uint8,
    "Uint32Array": np.uint32,
}


def parts() -> dict[str, Any]:
    """What ALICE is woken from; without the average puppet, which a `treat` may bring along."""
    register = json.loads((ROOT / "data" / "amendment.json").read_text())
    return {
        "kernel": (FOLDER / "kernel.wasm").read_bytes(),
        "weights": pack.weights(pack.MODEL),
        "reader": pack.weights(pack.READER),
        "clip": register["rows"][0]["clip"],
    }


class Page:
    """A page in which the laboratory's functions are known by their names."""

    def __init__(self, tab: Any) -> None:
        self.tab = tab

    def __call__(self, body: str, **given: Any) -> Any:
        """The value of a JavaScript expression, or of a body that returns; `await` is allowed.

        given: names it may use; tensors become Float32Array and bytes Uint8Array, and back.
        """
        names = ", ".join(given)
        body = body if "return" in body else f"return ({body});"
        script = (
            f"async (given) => {{ const {{{names}}} = fromPython(given);"
            f"return toPython(await (async () => {{ {body} }})()); }}"
        )
        return back(self.tab.evaluate(script, {name: there(one) for name, one in given.items()}))

    def wake(self) -> None:
        """ALICE awake in a worker, to which `ask` speaks."""
        (said,) = self("startWorker(source, parts)", source=pack.worker(), parts=parts())
        if said["state"] != "done":
            raise OSError(said["problem"])

    def ask(self, op: str, **job: Any) -> list[dict[str, Any]]:
        """All that the worker says to one message, the outcome last."""
        return list(self("ask(op, job)", op=op, job=job))


def there(value: Any) -> Any:
    """A value as the bridge takes it."""
    if isinstance(value, Tensor):
        kind = "Float64Array" if value.dtype == torch.float64 else "Float32Array"
        content = value.detach().contiguous().numpy().astype(KINDS[kind]).tobytes()
    elif isinstance(value, bytes):
        kind, content = "Uint8Array", value
    elif isinstance(value, dict):
        return {key: there(one) for key, one in value.items()}
    elif isinstance(value, list | tuple):
        return [there(one) for one in value]
    else:
        return value
    return {"kind": kind, "base64": base64.b64encode(content).decode()}


def back(value: Any) -> Any:
    """A value as the bridge gives it: typed arrays as flat tensors, Uint32 as int64."""
    if isinstance(value, list):
        return [back(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "kind" not in value:
        return {key: back(one) for key, one in value.items()}
    array = np.frombuffer(base64.b64decode(value["base64"]), KINDS[value["kind"]])
    return torch.from_numpy(array.astype(np.int64) if array.dtype == np.uint32 else array.copy())


@contextlib.contextmanager
def laboratory(folder: Any) -> Iterator[Page]:
    """A `Page` in a browser started for it; `folder` holds the blank file it opens."""
    blank = folder / "blank.html"
    blank.write_text("<!doctype html><title>laboratory</title>")
    with browsing() as context:
        tab = context.new_page()
        tab.goto(blank.as_uri())
        tab.add_script_tag(content=pack.worker())
        tab.add_script_tag(content=BRIDGE + WORKER)
        yield Page(tab)

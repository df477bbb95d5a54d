"""The laboratory packed: ALICE as text that a page from disk can load, and the page as one file.

A page opened from disk may load scripts, but no other file. So the weights become a script: in
bytes of seven bits, for UTF-8 writes such a byte as one byte, and base64 spends six bits on each.
"""

import base64
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

import mathkit as mk
from book import pages
from book.paths import BOOK, BUILD, ROOT, VENDOR
from mathkit import data

FOLDER = BOOK / "laboratory"
WORKER = (
    "memory", "layers", "weights", "alice", "reader",
    "noise", "diffusion", "small_svd", "svd", "treatment", "worker",
)  # fmt: skip
PAGE = ("laboratory.md", "page.html", "layers.js")  # what Sphinx reads
MODEL, READER = "alice/unet/diffusion_pytorch_model.safetensors", "reader.safetensors"
FONT = "courier-prime-latin-700-normal.woff2"
SINGLE = "laboratory.html"
UNSAFE = b'\0\n\r"<\\'  # what ends a line, a string, or a script within a page
GZIP = 31  # what zlib takes for its wrapping and a full window
GONE = "document.currentScript.remove();\n"  # else the browser keeps ten megabytes of text
SHADES = 33  # of the colours for signed numbers


def digits(raw: bytes) -> str:
    """Bytes as text, seven bits a character; the UNSAFE ones with 128 added.

    >>> digits(bytes([255, 1]))
    '\\x7f@ '
    """
    bits = np.unpackbits(np.frombuffer(raw, np.uint8))
    sevens = np.pad(bits, (0, -len(bits) % 7)).reshape(-1, 7)
    text = (np.packbits(sevens, axis=1) >> 1).tobytes().decode("ascii")
    return text.translate({code: 128 + code for code in UNSAFE})


def planes(raw: bytes) -> bytes:
    """All first bytes of numbers of two bytes, then all second ones: they compress better so.

    >>> planes(b"abcdef")
    b'acebdf'
    """
    if len(raw) % 2:
        raise ValueError(f"expected numbers of two bytes, got {len(raw)} bytes")
    return np.frombuffer(raw, np.uint8).reshape(-1, 2).T.tobytes()


def packed(raw: bytes, halves: bool = False) -> dict[str, Any]:
    """Bytes as the page unpacks them: gzip in `digits`; `halves` says that `planes` came first."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, GZIP, strategy=zlib.Z_FILTERED)
    small = squeeze.compress(planes(raw) if halves else raw) + squeeze.flush()
    return {"length": len(raw), "halves": halves, "text": digits(small)}


def source(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def worker() -> str:
    """The script of the worker: the engine, the mathematics, and the messages."""
    return "\n".join(source(f"{name}.js") for name in WORKER)


def weights(name: str) -> bytes:
    return (ROOT / "data" / name).read_bytes()


def settings() -> dict[str, Any]:
    """What the page must know of the project: her times, the treatment's register, the colours."""
    from matplotlib.colors import to_hex

    from mathkit.draw.style import SIGNED

    times = mk.timesteps(mk.load_model("alice"), 999, 25)
    amendment = json.loads((ROOT / "data" / "amendment.json").read_text())
    (row,) = amendment["rows"]
    doses = amendment["strengths"][row["name"]]
    return {
        "model": data.fingerprint(),
        "times": times,
        "treatment": {"t": row["t"], "clip": row["clip"], "doses": doses},
        "shades": [to_hex(SIGNED(i / (SHADES - 1))) for i in range(SHADES)],
    }


def average() -> bytes:
    """The average puppet, which a cure aims at, as float32."""
    return mk.puppets.average_puppet().numpy().astype("<f4").tobytes()


def digest() -> str:
    """A hash of all that `alice.js` is made of."""
    files = [FOLDER / name for name in ("pack.py", "kernel.wasm", *(f"{n}.js" for n in WORKER))]
    files += [ROOT / "data" / name for name in (MODEL, READER, "amendment.json")]
    files += [ROOT / "mathkit" / name for name in ("show/puppets.py", "draw/style.py")]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def alice() -> str:
    """The script that brings ALICE, the worker and the settings: `const ALICE = {...}`."""
    parts = {
        "kernel": packed((FOLDER / "kernel.wasm").read_bytes()),
        "weights": packed(weights(MODEL), halves=True),
        "reader": packed(weights(READER), halves=True),
        "average": packed(average()),
    }
    told = [f"{key}: {literal(value)}" for key, value in settings().items()]
    told += [f"worker: {literal(worker())}"]
    for key, part in parts.items():
        rest = {name: value for name, value in part.items() if name != "text"}
        told.append(f'{key}: {{...{literal(rest)}, text: "{part["text"]}"}}')
    return "const ALICE = {" + ",\n".join(told) + "};\n" + GONE


def literal(value: Any) -> str:
    """A value as JavaScript that may stand in a page."""
    return json.dumps(value).replace("<", "\\u003c")


def script() -> str:
    """The page's own script, whose names stay its own."""
    return f"(() => {{\n{source('page.js')}}})();\n"


def files(folder: Path = BUILD / "laboratory") -> Path:
    """The three files that the book's page loads, made anew where something changed; their folder.

    Args:
        folder: where they go: alice.js, laboratory.js and laboratory.css.
    """
    first = f"// {digest()}\n"
    bulk = folder / "alice.js"
    if not bulk.exists() or not bulk.read_bytes().startswith(first.encode()):
        pages.write(bulk, first + alice())
    pages.write(folder / "laboratory.js", script())
    pages.write(folder / "laboratory.css", source("page.css"))
    return folder


def single() -> str:
    """The laboratory as one page that needs no other file."""
    bulk = (files() / "alice.js").read_text(encoding="utf-8")
    return source("single.html").format(
        variables=variables(),
        font=base64.b64encode((VENDOR / FONT).read_bytes()).decode(),
        style=source("page.css"),
        body=source("page.html"),
        alice=bulk,
        script=script().replace("</", "<\\/"),
    )


def variables() -> str:
    """The book's colours by day and by night, for a page that stands alone."""
    from book.conf import html_theme_options as theme

    def block(names: str) -> str:
        return "".join(f"--{key}:{value};" for key, value in theme[names].items())

    day, night = block("light_css_variables"), block("dark_css_variables")
    return f":root{{{day}}}@media(prefers-color-scheme:dark){{:root{{{night}}}}}"


def write(out: Path = BUILD / SINGLE) -> Path:
    """The one-file page, written to `out`."""
    pages.write(out, single())
    return out

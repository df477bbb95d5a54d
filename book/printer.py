"""Pages as PDF, by the Chromium or Chrome that is there, driven over its DevTools protocol.

`chromium --print-to-pdf` prints when it thinks fit; here a page says itself when it is laid out.
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import websocket

BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)  # fmt: skip
SECONDS = 120
SETTLED = """(async () => {
  const wait = () => new Promise((done) => setTimeout(done, 50));
  while (document.readyState !== "complete") await wait();
  while (window.Reveal && !document.body.dataset.fitted) await wait();
  await document.fonts.ready;
  await window.MathJax?.startup?.promise;
})()"""

Call = Callable[..., Any]


def browser() -> str | None:
    """The browser that prints: MATHKIT_BROWSER, else the first of Chromium's family found."""
    return os.environ.get("MATHKIT_BROWSER") or next(
        filter(None, map(shutil.which, BROWSERS)), None
    )


def pdf(url: str) -> bytes:
    """The page at `url`, once it is laid out, as the bytes of a PDF in its own paper size.

    Raises OSError where there is no browser, or where it fails or takes over two minutes.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tab(folder) as call:
        call("Page.navigate", url=url)
        call("Runtime.evaluate", expression=SETTLED, awaitPromise=True)
        done = call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
    return base64.b64decode(done["data"])


@contextlib.contextmanager
def tab(folder: str) -> Iterator[Call]:
    """A tab of a browser started for it; what is yielded calls a method of the protocol."""
    program = browser()
    if program is None:
        raise OSError("no Chromium or Chrome found; set MATHKIT_BROWSER to one")
    flags = ["--headless", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
    flags += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command = [program, *flags, f"--user-data-dir={folder}", "about:blank"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as process:  # type: ignore[call-overload]
        try:
            with contextlib.closing(connected(Path(folder), process)) as line:
                target = called(line, "Target.createTarget", url="about:blank")["targetId"]
                way = {"targetId": target, "flatten": True}
                session = called(line, "Target.attachToTarget", **way)["sessionId"]
                yield lambda method, **given: called(line, method, session, **given)
                called(line, "Browser.close")
        except websocket.WebSocketException as error:
            raise OSError(f"{program} stopped answering: {error}") from error
        finally:
            process.terminate()


def connected(folder: Path, process: subprocess.Popen[bytes]) -> Any:
    """The browser's line, once it has written where it listens."""
    told, last = folder / "DevToolsActivePort", time.monotonic() + SECONDS
    while not (told.exists() and "/" in told.read_text()):
        if process.poll() is not None or time.monotonic() > last:
            raise OSError(f"{browser()} did not start")
        time.sleep(0.05)
    port, path = told.read_text().split()
    address = f"ws://127.0.0.1:{port}{path}"
    return websocket.create_connection(
        address, timeout=SECONDS, suppress_origin=True, http_no_proxy=["127.0.0.1"]
    )


def called(line: Any, method: str, session: str | None = None, **given: Any) -> Any:
    """The protocol's answer to one call; events that come in between are let pass."""
    message = {"id": 1, "method": method, "params": given}
    line.send(json.dumps({**message, "sessionId": session} if session else message))
    while True:
        answer = json.loads(line.recv())
        if answer.get("id") == 1 and answer.get("sessionId") == session:
            break
    if "error" in answer or "exceptionDetails" in answer["result"]:
        raise OSError(f"{method} failed: {answer.get('error') or answer['result']}")
    return answer["result"]

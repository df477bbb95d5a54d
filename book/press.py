"""Decks and handouts of the chapters, and their PDFs where there is a browser."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from book import deck, handout, pages, scan
from book.paths import BOOK, BUILD

BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)  # fmt: skip
UNUSED = ("css", "dist/theme", "plugin/highlight", "plugin/markdown", "plugin/math",
          "plugin/search", "plugin/zoom")  # fmt: skip
PATIENCE = 60_000  # virtual ms for pages to typeset themselves
SECONDS = 300

Book = tuple[str, Any]


def browser() -> str | None:
    """The browser that prints: MATHKIT_BROWSER, else the first of Chromium's family found."""
    return os.environ.get("MATHKIT_BROWSER") or next(
        filter(None, map(shutil.which, BROWSERS)), None
    )


def pdf(page: Path, query: str = "") -> Path | None:
    """The page printed beside itself as PDF by Chromium; None where there is none, or it fails."""
    program = browser()
    if program is None:
        return None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        new = Path(folder) / "new.pdf"
        flags = ["--headless", "--disable-gpu", "--no-pdf-header-footer", "--no-first-run"]
        flags += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        flags += [f"--user-data-dir={folder}/profile", f"--virtual-time-budget={PATIENCE}"]
        command = [program, *flags, f"--print-to-pdf={new}", page.as_uri() + query]
        try:
            subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        if not new.exists():
            return None
        target = page.with_suffix(".pdf")
        pages.write(target, new.read_bytes())
    return target


def sphinx(builder: str, conf: Path, texts: dict[str, str], out: Path) -> None:
    """Build Markdown pages, by name, with the settings in `conf` into `out`."""
    work = out.parent / f"{out.name}-work"
    shutil.rmtree(work / "pages", ignore_errors=True)
    for name, text in texts.items():
        pages.write(work / "pages" / f"{name}.md", text)
    where = ["-c", str(conf), "-d", str(work / "doctrees"), str(work / "pages"), str(out)]
    first = ["-D", f"root_doc={next(iter(texts))}"]
    command = [sys.executable, *f"-m sphinx -W --keep-going -q -b {builder}".split()]
    if subprocess.run([*command, *first, *where]).returncode:
        raise SystemExit(f"the {out.name} has faults (above)")


def sound(out: Path, made: Iterable[Path]) -> None:
    """Refuse pages that would fetch something, or link to what is not there."""
    names = {page.name for page in made}
    found = [f for f in scan.faults(out) if f.split(":")[0] in names or ".css" in f.split(":")[0]]
    if found:
        raise SystemExit("\n".join([f"the {out.name} would not open from disk:", *found]))


def decks(books: list[Book], after: dict[str, str], out: Path = BUILD / "deck") -> list[Path]:
    """The slides of each chapter; `after` has the title of the chapter that follows."""
    texts = {name: deck.page(nb, name, after.get(name, "")) for name, nb in books}
    sphinx("revealjs", BOOK / "lecture" / "deck", texts, out)
    for folder in UNUSED:
        shutil.rmtree(out / "_static" / "revealjs" / folder, ignore_errors=True)
    made = [out / f"{name}.html" for name, _ in books]
    sound(out, made)
    return made


def handouts(books: list[Book], out: Path = BUILD / "handout") -> list[Path]:
    """The exercises of each chapter, and their solutions, each a page of its own."""
    texts = {page: text for name, nb in books for page, text in handout.texts(nb, name).items()}
    sphinx("html", BOOK / "lecture" / "sheet", texts, out)
    made = [out / f"{page}.html" for page in texts]
    sound(out, made)
    return made


def printed(made: list[Path], say: Callable[[str], object] = print, query: str = "") -> None:
    """Each page's PDF beside it, or a sentence why there is none."""
    for page in made:
        done = pdf(page, query)
        if done:
            say(f"{done}, {done.stat().st_size / 1e6:.1f} MB")
        elif browser() is None:
            say("no PDF: no Chromium or Chrome found; open the page above and print it, "
                "or set MATHKIT_BROWSER to one")  # fmt: skip
            return
        else:
            say(f"no PDF of {page.name}: the browser failed; open the page and print it")

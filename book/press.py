"""Decks and handouts of the chapters, and their PDFs where there is a browser."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from book import deck, handout, pages, printer, scan
from book.laboratory import pack
from book.paths import BOOK, BUILD, ROOT

UNUSED = ("css", "dist/theme", "plugin/highlight", "plugin/markdown", "plugin/math",
          "plugin/search", "plugin/zoom")  # fmt: skip

Book = tuple[str, Any]


def sphinx(builder: str, conf: Path, texts: dict[str, str], out: Path) -> None:
    """Build Markdown pages, by name, with the settings in `conf` into `out`."""
    work = out.parent / f"{out.name}-work"
    shutil.rmtree(work / "pages", ignore_errors=True)
    for name, text in texts.items():
        pages.write(work / "pages" / f"{name}.md", text)
    where = ["-c", str(conf), "-d", str(work / "doctrees"), str(work / "pages"), str(out)]
    first = ["-D", f"root_doc={next(iter(texts))}"]
    command = [sys.executable, *f"-m sphinx -W --keep-going -q -b {builder}".split()]
    if subprocess.run([*command, *first, *where], cwd=ROOT).returncode:
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
    if any(f'"{pack.SINGLE}#' in text for text in texts.values()):
        pack.write(out / pack.SINGLE)
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
    """Each page's PDF beside it, or a sentence why there is none: the page stands."""
    for page in made:
        try:
            pages.write(page.with_suffix(".pdf"), printer.pdf(page.resolve().as_uri() + query))
        except OSError as error:
            say(f"no PDF ({error}): open the page and print it from there")
            return
        say(f"{page.with_suffix('.pdf')}, {page.with_suffix('.pdf').stat().st_size / 1e6:.1f} MB")

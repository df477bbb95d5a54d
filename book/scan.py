"""What a built page would fetch: every resource must lie inside the book."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {
    "script": ["src"], "img": ["src", "srcset"], "source": ["src", "srcset"], "iframe": ["src"],
    "video": ["src", "poster"], "audio": ["src"], "track": ["src"], "embed": ["src"],
    "object": ["data"], "input": ["src"], "use": ["href", "xlink:href"],
    "image": ["href", "xlink:href"], "body": ["background"],
}  # fmt: skip
LINKS_NOT_FETCHED = {"next", "prev", "index", "search", "author", "license", "canonical"}
CSS_FETCH = re.compile(r"""url\(\s*['"]?([^'")]+)|@import\s+['"]([^'"]+)""")
SCRIPT_FETCH = re.compile(r"""(?:import\s*\(?|fetch\(|\.src\s*=|from)\s*['"`]([^'"`]+)""")


class Page(HTMLParser):
    """Collects what a page fetches (`fetched`) and where it links to (`linked`)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.linked: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.inside = tag if tag in ("style", "script") else ""
        if tag == "script" and "json" in given.get("type", ""):
            self.inside = ""
        for name in FETCHED.get(tag, []):
            parts = given.get(name, "").split(",") if name == "srcset" else [given.get(name, "")]
            self.fetched += [part.split()[0] for part in parts if part.strip()]
        if tag == "link" and not LINKS_NOT_FETCHED & set(given.get("rel", "").split()):
            self.fetched.append(given.get("href", ""))
        if tag == "a" and "href" in given:
            self.linked.append(given["href"])
        self.fetched += styled(given.get("style", ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.inside = ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "style":
            self.fetched += styled(data)
        if self.inside == "script":
            self.fetched += [u for u in SCRIPT_FETCH.findall(data) if "://" in u or u[:2] == "//"]


def styled(css: str) -> list[str]:
    return [url or imported for url, imported in CSS_FETCH.findall(css)]


def fault(base: Path, url: str, book: Path) -> str | None:
    """Why a page or style sheet in folder `base` must not use this address, if it must not."""
    parts = urlsplit(url)
    if parts.scheme == "data" or not (parts.scheme or parts.netloc or parts.path):
        return None
    if parts.scheme or parts.netloc:
        return "is not in the book"
    target = (base / unquote(parts.path)).resolve()
    if parts.path.startswith("/") or not target.is_relative_to(book.resolve()):
        return "leads out of the book"
    return None if target.exists() else "does not exist"


def faults(book: Path) -> list[str]:
    """Each fetched address that is not a file of the book, and each broken link inside it."""
    found = []
    for page in sorted(book.rglob("*.html")):
        seen = Page(page.read_text(encoding="utf-8"))
        inner = [u for u in seen.linked if not urlsplit(u).scheme and not urlsplit(u).netloc]
        found += [(page, url, fault(page.parent, url, book)) for url in seen.fetched + inner]
    for sheet in sorted(book.rglob("*.css")):
        urls = styled(sheet.read_text(encoding="utf-8"))
        found += [(sheet, url, fault(sheet.parent, url, book)) for url in urls]
    return [f"{at.relative_to(book)}: {url[:200]} {why}" for at, url, why in found if why]

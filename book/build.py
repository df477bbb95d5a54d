"""Run the series and build its web book: `python -m book.build COMMAND`.

run      execute what changed, build the book, open it where there is a screen
html     build the book only (--stored: from the committed outputs, executing nothing)
refresh  execute what changed and store normalised outputs in notebooks/
bench    run each notebook alone and print its seconds
deck     the slides of a lecture, from the outputs at hand (--scale 2: executed for a projector)
handout  the exercises on paper, and a sheet with their solutions
lab      copy missing notebooks to lab/ and open JupyterLab there
cover    draw the front page's picture
laboratory  ALICE alive in one page that can be mailed, _build/laboratory.html
clips    a film of each chapter, in _build/clips/ (--keep: also the two that the repository holds)
"""

import argparse
import os
import subprocess
import sys
import tempfile
import webbrowser
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from book import pages, press, scan, store, teach
from book.execute import Outcome, cores, execute, graft, kept, read
from book.laboratory import pack
from book.paths import BOOK, BUILD, HTML, REFERENCE, ROOT, chapters
from mathkit import data

CLIP_PAGE = "make_your_own_clip"


def failures(outcomes: Iterable[Outcome]) -> None:
    """Stop with every failed notebook's file, cell and reason."""
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if errors:
        raise SystemExit("\n\n".join([*errors, f"{len(errors)} notebook(s) failed"]))


def executed(quick: bool = False) -> list[tuple[str, Any]]:
    outcomes = execute(chapters(), quick)
    failures(outcomes)
    return [(o.path.stem, as_run(o.path, o.copy)) for o in outcomes]


def as_run(path: Path, copy: Path) -> Any:
    """A chapter as it reads now, with the normalised outputs of its executed copy."""
    return store.normalise(graft(read(path), read(copy)))


def stored() -> list[tuple[str, Any]]:
    return [(path.stem, read(path)) for path in chapters()]


def back(cut: str | None) -> list[Path]:
    """The pages after the last chapter, the reference's own in its folder; the story needs none."""
    if cut == pages.STORY:
        return []
    return [BOOK / "notation.md", BOOK / f"{CLIP_PAGE}.md", *sorted(REFERENCE.glob("*.md"))]


def sources(books: list[tuple[str, Any]], folder: Path, cut: str | None = None) -> None:
    """The pages as Sphinx reads them; what no longer belongs there goes."""
    thumbs, names, cards = folder / "thumbs", [name for name, _ in books], []
    needed = {name: pages.minutes(nb, name) for name, nb in books}
    written = {path.name: path.read_text(encoding="utf-8") for path in back(cut)}
    written |= {n: pages.reachable(pack.source(n), [name for name, _ in books]) for n in pack.PAGE}
    written["teaching.md"] = teach.page(books)  # before a cut takes what it counts
    for name, nb in books:
        picture = pages.thumbnail(nb)
        if picture:
            pages.write(thumbs / f"thumb-{name}.png", picture)
        cards.append(pages.card(name, nb, bool(picture)))
        written[f"{name}.ipynb"] = store.text(pages.chapter(nb, cut))
    names += [
        "laboratory",
        "teaching",
        *(["notation", CLIP_PAGE, "reference"] if back(cut) else []),
    ]
    template = (BOOK / "front.md").read_text(encoding="utf-8")
    written["index.md"] = pages.front(template, needed, cards, names)
    for name, text in written.items():
        pages.write(folder / "pages" / name, text)
    thumbs.mkdir(exist_ok=True)
    for page in (folder / "pages").iterdir():
        if page.name not in written:
            page.unlink()


def html(books: list[tuple[str, Any]], out: Path = HTML, cut: str | None = None) -> Path:
    """Build the book into `out` and refuse one that would fetch anything; its index.html."""
    work = out.parent / f"{out.name}-work"
    sources(books, work, cut)
    command = [sys.executable, *"-m sphinx -W --keep-going -q -j auto -b html".split()]
    where = ["-c", str(BOOK), "-d", str(work / "doctrees"), str(work / "pages"), str(out)]
    static = [BOOK / "_static", work / "thumbs", pack.files()]
    loaded = ["-D", f"html_static_path={','.join(map(str, static))}"]
    if subprocess.run([*command, *loaded, *where]).returncode:
        raise SystemExit("the book has faults (above); nothing was opened")
    found = scan.faults(out)
    if found:
        raise SystemExit("\n".join(["the book would not open from disk:", *found]))
    return out / "index.html"


def has_screen() -> bool:
    seen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return not os.environ.get("CI") and bool(seen or sys.platform in ("darwin", "win32"))


def show(index: Path) -> None:
    print(f"The book: {index}")
    if has_screen():
        try:
            webbrowser.open(index.as_uri())
        except (OSError, webbrowser.Error):
            print("(no browser could be opened; open the file above in one)")


def refresh(names: list[str]) -> None:
    """Write outputs back to notebooks/, byte for byte the same where nothing changed."""
    if os.environ.get("MATHKIT_DATA"):
        raise SystemExit("stored outputs are those of the clone's own data/: unset MATHKIT_DATA")
    outcomes = execute(chapters(names))
    for done in (o for o in outcomes if not o.error):
        new = store.text(store.stamped(as_run(done.path, done.copy)))
        changed = new != done.path.read_text(encoding="utf-8")
        pages.write(done.path, new)
        size = f"{len(new.encode()) / 1000:.0f} KB"
        print(f"{done.path.stem:<40} {'refreshed' if changed else 'unchanged'}, {size}")
    failures(outcomes)


def bench(names: list[str]) -> None:
    """Seconds of each notebook in full, alone, on at most two cores."""
    with tempfile.TemporaryDirectory() as folder:
        threads = min(2, cores())
        outcomes = execute(chapters(names), jobs=1, threads=threads, folder=Path(folder))
    print(f"{'notebook':<40} seconds on {threads} core(s); the aim is 60")
    for done in outcomes:
        print(f"{done.path.stem:<40} {done.seconds:7.0f}{'  over' if done.seconds > 60 else ''}")
    print(f"{'all':<40} {sum(o.seconds for o in outcomes):7.0f}")
    failures(outcomes)


def latest(path: Path) -> Any:
    """A chapter with the outputs of its last run, if they still hold, else with the stored ones."""
    copy = BUILD / "run" / path.name
    return as_run(path, copy) if kept(path, copy, quick=False) else read(path)


def at_scale(paths: list[Path], scale: float) -> list[tuple[str, Any]]:
    """The chapters executed with figures of `scale` times the pixels; kept while they hold."""
    os.environ["MATHKIT_SCALE"] = f"{scale:g}"
    outcomes = execute(paths, folder=BUILD / f"run-{scale:g}x")
    failures(outcomes)
    return [(o.path.stem, as_run(o.path, o.copy)) for o in outcomes]


def following() -> dict[str, str]:
    """For each chapter the heading of the next one."""
    heads = {path.stem: pages.heading(read(path), path.stem) for path in chapters()}
    return dict(zip(heads, list(heads.values())[1:], strict=False))


def deck(names: list[str], scale: float | None, paper: bool) -> None:
    """The decks of the chapters named, and with `paper` each as PDF too."""
    paths = chapters(names)
    books = at_scale(paths, scale) if scale else [(path.stem, latest(path)) for path in paths]
    made = press.decks(books, following())
    print(*made, sep="\n")
    if paper:
        press.printed(made, query="?print-pdf")


def handout(names: list[str]) -> None:
    """The handouts of the chapters named, as pages and, where there is a browser, as PDF."""
    made = press.handouts([(path.stem, latest(path)) for path in chapters(names)])
    print(*made, sep="\n")
    press.printed(made)


def lab() -> None:
    """The reader's own copies: what is missing is copied, what is there is never touched."""
    folder = ROOT / "lab"
    for path in chapters():
        if not (folder / path.name).exists():
            data.store(folder / path.name, path.read_bytes())
    subprocess.run([sys.executable, "-m", "jupyter", "lab", str(folder)])


def laboratory() -> None:
    """The laboratory as one page."""
    page = pack.write()
    print(f"{page}, {page.stat().st_size / 1e6:.1f} MB")


def cover() -> None:
    """A row of puppets, the Stranger behind two of them: the renderer's own picture."""
    from book.cover import draw

    print(draw(BOOK / "_static" / "cover.png"))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m book.build", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_subparsers(dest="command", required=True).add_parser
    for name in ("run", "html"):
        sub = add(name)
        sub.add_argument(
            "--cut", choices=[pages.MATH, pages.STORY], help="leave out the other kind"
        )
        sub.add_argument("--quick", action="store_true", help="small settings, as the tests use")
        sub.add_argument("--stored", action="store_true", help="the committed outputs, unexecuted")
    for name in ("refresh", "bench"):
        add(name).add_argument("names", nargs="*", help="chapters, such as 01 13; all by default")
    sub = add("deck")
    sub.add_argument("names", nargs="*", help="chapters, such as 06; all by default")
    sub.add_argument(
        "--scale", type=float, help="execute, with figures of this many times the pixels"
    )
    sub.add_argument("--pdf", action="store_true", help="print each deck, by Chromium")
    sub = add("handout")
    sub.add_argument("names", nargs="*", help="chapters, such as 06; all by default")
    sub = add("clips")
    sub.add_argument("names", nargs="*", help="chapters, such as 01 13; all by default")
    sub.add_argument("--keep", action="store_true", help="renew book/_static/clips/ from them")
    for name in ("lab", "laboratory", "cover"):
        add(name)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    os.environ.pop("MATHKIT_SCALE", None)  # a setting of decks, set by their command alone
    if args.command == "deck":
        return deck(args.names, args.scale, args.pdf)
    if args.command == "handout":
        return handout(args.names)
    if args.command in ("run", "html"):
        books = stored() if args.stored else executed(args.quick)
        out = BUILD / ("html" if not args.cut else f"html-{args.cut}")
        index = html(books, out, args.cut)
        return show(index) if args.command == "run" else print(f"The book: {index}")
    if args.command == "refresh":
        return refresh(args.names)
    if args.command == "bench":
        return bench(args.names)
    if args.command == "clips":
        from book.clips import clips

        return clips(args.names, args.keep)
    return {"lab": lab, "laboratory": laboratory, "cover": cover}[args.command]()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; the notebooks already executed are kept, the same command goes on")
    except (ValueError, OSError) as error:
        sys.exit(f"book: {error}")

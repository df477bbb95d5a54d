"""Where the series lies and where its built copies go."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
REFERENCE = BOOK / "reference"
NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "_build"
HTML = BUILD / "html"
VENDOR = BOOK / "_static" / "vendor"


def chapters(names: list[str] | None = None) -> list[Path]:
    """The notebooks in reading order: all, or those whose file name starts with one of `names`."""
    every = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    if not names:
        return every
    wanted = [Path(name).name for name in names]
    missing = [n for n in wanted if not any(path.name.startswith(n) for path in every)]
    if missing:
        have = ", ".join(path.stem for path in every) or "none"
        raise ValueError(f"no notebook starts with {', '.join(missing)}; there are: {have}")
    return [path for path in every if any(path.name.startswith(n) for n in wanted)]

"""A process that ends between two of its file operations, and a disk that has no room.

What a killed process leaves is on its disk alone: wherever it is killed, that is one of the moments
before and after a folder is made, a file opened, half of a write done, synced, moved or removed.
`Fate` counts them below one folder, whoever the writer is, and ends the process at one of them: by
an exception that nothing catches, after which nothing there changes any more, or by SIGKILL.

python tests/killing.py TOOL FOLDER MOMENT [RANK] runs a tool of tests/test_killed.py and is killed.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import io
import os
import random
import shutil
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Killed(BaseException):
    """Nothing in a tool catches this, as nothing catches SIGKILL."""


class Tool(NamedTuple):
    """run: the command, in a folder; patches as it likes and notes the units it works on.

    finished: the units that need not be worked on again, by what is in the folder. read: what of a
    file is to be the same.
    """

    run: Callable[[Path, pytest.MonkeyPatch, list[Any]], object]
    finished: Callable[[Path], set[Any]]
    read: Callable[[Path], Any] = Path.read_bytes


class Fate:
    """Counts the moments below a folder.

    at: the moment that kills, 0 for none. real: by SIGKILL. room: bytes that the disk still takes.
    seen: for each file of a final name, what it held each time that it was done with.
    """

    def __init__(
        self, folder: Path, read: Callable[[Path], Any] = Path.read_bytes, at: int = 0,
        real: bool = False, room: float = float("inf"),
    ) -> None:  # fmt: skip
        self.folder, self.read, self.at, self.real, self.room = folder, read, at, real, room
        self.count, self.written, self.dead = 0, 0, False
        self.seen: dict[str, list[Any]] = defaultdict(list)

    def tick(self) -> None:
        self.count += not self.dead
        if self.count == self.at:
            if self.real:
                os.kill(os.getpid(), signal.SIGKILL)
            self.dead = True
            raise Killed

    def holds(self, path: Any) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        return self.folder in (Path(path), *Path(path).parents)

    def done_with(self, path: Any) -> None:
        name = str(Path(path).relative_to(self.folder))
        if final(name):
            self.seen[name].append(self.read(Path(path)))

    def around(self, f: Callable[..., Any], moves: bool = False) -> Callable[..., Any]:
        """f of the module os, with a moment before and one after."""

        def g(*args: Any, **kw: Any) -> Any:
            if not (self.dead or f is fsync or any(map(self.holds, args))):
                return f(*args, **kw)
            self.tick()
            answer = f(*args, **kw)
            if moves:
                self.done_with(args[1])
            self.tick()
            return answer

        fsync = os.fsync
        return g

    @contextmanager
    def over(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        """Within it the moments count; what it patches is as it was after `patch.undo()`."""
        plain = open

        def opened(path: Any, mode: str = "r", *args: Any, **kw: Any) -> Any:
            if self.dead:
                raise Killed
            if not self.holds(path) or not set(mode) & set("wax+"):
                return plain(path, mode, *args, **kw)
            self.tick()
            pen = Pen(self, path, mode.replace("b", "").replace("t", ""))
            try:
                self.tick()
            except Killed:
                pen.close()
                raise
            return pen if "b" in mode else io.TextIOWrapper(pen, "utf-8", write_through=True)

        for name in ("fsync", "mkdir", "rmdir", "unlink", "remove"):
            patch.setattr(os, name, self.around(getattr(os, name)))
        for name in ("replace", "rename"):
            patch.setattr(os, name, self.around(getattr(os, name), moves=True))
        for module in (builtins, io):
            patch.setattr(module, "open", opened)
        yield


class Pen(io.FileIO):
    """A file with a moment when half of what is written lies on the disk, which may be full."""

    def __init__(self, fate: Fate, path: Any, mode: str) -> None:
        super().__init__(path, mode)
        self.fate, self.path = fate, path

    def write(self, content: Any) -> int:
        content = bytes(content)
        if self.fate.dead:
            raise Killed
        half = len(content) // 2
        for part in (content[:half], content[half:]):
            fits = part[: max(0, int(min(self.fate.room - self.fate.written, len(part))))]
            self.fate.written += super().write(fits)
            if len(fits) < len(part):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.fate.tick()
        return len(content)

    def close(self) -> None:
        whole = not (self.closed or self.fate.dead)
        super().close()
        if whole:
            self.fate.done_with(self.path)


def final(name: str) -> bool:
    """Whether that is the name of something that is read again, not of a part."""
    return not (name.endswith(".part") or name.startswith(".film-") or "/.film-" in name)


def content(folder: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """What is in the files of final names."""
    names = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]
    return {name: read(folder / name) for name in names if final(name)}


def live(tool: Tool, folder: Path, **fate: Any) -> tuple[Fate, list[Any]]:
    """One run, to its end or its death; what befell it, and the units it worked on."""
    met, did = Fate(folder, tool.read, **fate), list[Any]()
    with pytest.MonkeyPatch.context() as patch:
        try:
            with met.over(patch):
                tool.run(folder, patch, did)
        except Killed:
            assert met.dead
    return met, did


class Undisturbed(NamedTuple):
    """Moments, bytes written, units, what the files end with, and what they held on the way."""

    moments: int
    written: int
    units: set[Any]
    end: dict[str, Any]
    seen: dict[str, list[Any]]


def undisturbed(tool: Tool, folder: Path) -> Undisturbed:
    shutil.rmtree(folder, ignore_errors=True)
    met, did = live(tool, folder)
    units = tool.finished(folder)
    assert did and len(did) == len(set(did)) and units <= set(did)
    return Undisturbed(met.count, met.written, units, content(folder, tool.read), met.seen)


def check_left(tool: Tool, folder: Path, whole: Undisturbed) -> set[Any]:
    """The units that are finished; what has a final name is what it once was, undisturbed."""
    for name, held in content(folder, tool.read).items():
        assert held in whole.seen[name], f"{name} is neither whole nor absent"
    return tool.finished(folder)


def go_on(tool: Tool, folder: Path, whole: Undisturbed) -> None:
    """The same command again: the same bits, and nothing that was finished is done again."""
    before = check_left(tool, folder, whole)
    _, did = live(tool, folder)
    assert not before & set(did), "what was finished is done again"
    assert whole.units == tool.finished(folder) <= before | set(did)
    assert content(folder, tool.read) == whole.end, "the bits are others"


def survives(tool: Tool, folder: Path, whole: Undisturbed, kills: int, seed: int = 0) -> None:
    """Kill it at so many of its moments, every second time once more as it goes on."""
    draw = random.Random(seed)
    assert whole.moments >= kills
    for life, at in enumerate(draw.sample(range(1, whole.moments + 1), kills)):
        shutil.rmtree(folder)
        met, before = live(tool, folder, at=at)[0], set[Any]()
        assert met.dead
        if life % 2:
            before = check_left(tool, folder, whole)
            _, did = live(tool, folder, at=draw.randint(1, whole.moments))
            assert not before & set(did), "what was finished is done again"
        assert before <= check_left(tool, folder, whole), "what was finished is lost"
        go_on(tool, folder, whole)


def out_of_room(tool: Tool, folder: Path, whole: Undisturbed, room: int) -> str:
    """What is said when the disk is full after so many bytes; with space again it goes on."""
    shutil.rmtree(folder)
    with pytest.raises(OSError) as told:
        live(tool, folder, room=room)
    assert told.value.errno == errno.ENOSPC
    go_on(tool, folder, whole)
    return str(told.value)


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """Within it a folder and those in it take no files, from the superuser neither."""
    places = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for place in places:
        place.chmod(0o555)
    powers = _powers() if os.geteuid() == 0 else None
    try:
        if powers is not None:
            _powers([powers[0] & ~OVERRIDE, *powers[1:]])
        yield
    finally:
        if powers is not None:
            _powers(powers)
        for place in places:
            place.chmod(0o755)


OVERRIDE = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


def _powers(change: Sequence[int] = ()) -> list[int]:
    """The capabilities of this thread, the effective ones first; changed where some are given."""
    if sys.platform != "linux":
        pytest.skip("the superuser of this system writes everywhere")
    libc, head = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)(*change)
    if (libc.capset if change else libc.capget)(head, sets):
        raise OSError(ctypes.get_errno(), "capabilities")
    return list(sets)


def main(name: str, folder: str, at: str, rank: str = "0") -> None:
    from test_killed import TOOLS

    mortal = int(at) if rank == os.environ.get("RANK", "0") else 0
    live(TOOLS[name], Path(folder), at=mortal, real=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

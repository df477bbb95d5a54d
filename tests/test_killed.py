"""Every tool killed, at 86 moments, drawn with a seed from all that there are: run again, it ends
with the bits of a run that nobody disturbed, and does nothing again that was finished.

The oracle is the undisturbed run: each file's last bits, and each state that it was whole in. So a
full disk and a folder that takes no files are tried too.
"""

import errno
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import standins
import torch
from conftest import UNTRAINED
from killing import (
    Tool,
    check_left,
    closed,
    content,
    final,
    go_on,
    live,
    out_of_room,
    survives,
    undisturbed,
)
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from book import build, clips, cover, execute
from mathkit import data
from mathkit.draw import film, scenes
from mathkit.tools import atlas, edit, report
from mathkit.tools.subject import Settings
from studies import crowds, jobs, runner, ship, train, trial

pytestmark = [UNTRAINED, pytest.mark.usefixtures("figures_closed")]
ROOT = Path(__file__).resolve().parent.parent
Patch = pytest.MonkeyPatch
Did = list[Any]


def model(folder: Path) -> str:
    """A diffusers folder beside this one: images (3, 16, 16), h (8, 2, 2)."""
    place = folder.parent / "model"
    return str(place if place.exists() else standins.ddpm(place, standins.SMALL))


def noted(did: Did, name: Callable[..., Any], f: Callable[..., Any]) -> Callable[..., Any]:
    """f, which notes the unit that it works on."""

    @functools.wraps(f)
    def g(*args: Any, **kw: Any) -> Any:
        did.append(name(*args, **kw))
        return f(*args, **kw)

    return g


# The tools, on what is small ---------------------------------------------------------------------


def run_atlas(folder: Path, patch: Patch, did: Did) -> None:
    patch.setattr(atlas, "side_by_side", noted(did, lambda f, *_: f.t, atlas.side_by_side))
    words = f"--model {model(folder)} --samples 0,3 --times 999,500 --k 3 --steps 5 --device cpu"
    atlas.main(["--out", str(folder), *words.split()])


def times_done(folder: Path) -> set[Any]:
    """Items of one time are one unit: they are searched side by side."""
    return {t for t in (999, 500) if len(list(folder.glob(f"sample*_t{t:04d}.safetensors"))) == 2}


STEPS = 7


def run_training(folder: Path, patch: Patch, did: Did) -> None:
    """The understudy, smaller, on pictures of its own size."""
    few = {"block_out_channels": (16, 16, 16), "attention_head_dim": 16}
    few |= {f"{way}_block_types": train.UNET[f"{way}_block_types"][-3:] for way in ("down", "up")}
    patch.setitem(train.PATIENTS, "understudy", train.UNET | few)
    patch.setattr(train, "RUNS", folder)
    patch.setattr(train, "fit", functools.partial(train.fit, every=3))

    class Loss(train.DenoiserLoss):
        def __call__(self, net: Any, step: int, draw: Any) -> Any:
            did.append(step)
            return super().__call__(net, step, draw)

    patch.setattr(train, "DenoiserLoss", functools.partial(Loss, batch=1, recent=4))
    train.main(["understudy", "--steps", str(STEPS)])


def steps_done(folder: Path) -> set[Any]:
    path = folder / "understudy" / train.STATE
    return set(range(torch.load(path)["step"])) if path.exists() else set()


def bits(path: Path) -> Any:
    """All numbers of a run; where its pickle names one thing twice is none of them."""
    if path.name != train.STATE:
        return path.read_bytes()

    def plain(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return str(x.dtype), x.shape, x.numpy().tobytes()
        if isinstance(x, dict):
            return [(key, plain(value)) for key, value in x.items()]
        return [*map(plain, x)] if isinstance(x, list | tuple) else x

    return plain(torch.load(path))


KEPT_PARTS = ("Directions", "Frequencies", "Shared directions")


def run_report(folder: Path, patch: Patch, did: Did) -> None:
    """Parts of it that take no time and no memory into account, and a clock that stands still."""
    parts = {name: report.PARTS[name] for name in KEPT_PARTS}
    patch.setattr(report, "PARTS", parts)
    patch.setattr(time, "perf_counter", lambda: 0.0)
    patch.setattr(report, "_made", noted(did, lambda name, *_: name, report._made))
    small: dict[str, Any] = {"samples": 2, "times": (999, 500), "k": 2, "steps": 2}
    report.make(Settings(model(folder), strength=0.2, device="cpu", **small), folder)


def parts_done(folder: Path) -> set[Any]:
    return {json.loads(path.read_bytes())["name"] for path in folder.glob("part*.json")}


def run_edit(folder: Path, patch: Patch, did: Did) -> None:
    """Both commands."""
    photo = folder.parent / "me.png"
    if not photo.exists():
        noise = np.random.default_rng(0).integers(60, 190, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(photo)
    patch.setattr(edit.Photo, "_found", noted(did, lambda photo: "directions", edit.Photo._found))
    words = f"--model {model(folder)} --image {photo} --times 500 --k 1 --steps 2 --device cpu"
    edit.main(["--out", str(folder), *words.split()])
    edit.main(["--out", str(folder), "--direction", "1", "--strength", "0.3"])
    plt.close("all")


def directions_done(folder: Path) -> set[Any]:
    return {"directions"} if (folder / edit.FOUND).exists() else set()


def a_clone(folder: Path, patch: Patch) -> None:
    """Jobs that work and publish below the folder, by a clock that stands still."""
    patch.setattr(runner, "SCRATCH", folder / "scratch")
    patch.setattr(trial, "SCRATCH", folder / "scratch")
    patch.setattr(time, "monotonic", lambda: 0.0)
    patch.setattr(data, "clone", lambda: folder / "data")
    patch.setattr(data, "folders", lambda: [folder / "data"])


def run_crowds(folder: Path, patch: Patch, did: Did) -> None:
    """A sweep, `python -m studies results crowds`, of fewer and smaller worlds."""
    a_clone(folder, patch)
    patch.setattr(crowds, "WORLDS", [(8, 0.8), (9, 0.8)])
    patch.setattr(crowds, "FRAMES", 3)
    patch.setattr(crowds, "count", functools.partial(crowds.count, steps=5))
    patch.setattr(crowds, "crowd_row", noted(did, lambda *at: at, crowds.crowd_row))
    jobs.main(["crowds"])


def worlds_done(folder: Path) -> set[Any]:
    return {tuple(json.loads(path.read_bytes())["item"]) for path in folder.rglob("?.json")}


def run_protocol(folder: Path, patch: Patch, did: Did) -> None:
    """`python -m studies results protocol`, its measurements replaced by numbers of their items."""
    a_clone(folder, patch)
    patch.setattr(trial, "load_model", lambda name: None)
    patch.setattr(trial, "unrelated_distance", lambda: 0.1)
    patch.setattr(trial, "average_puppet", lambda: None)
    patch.setattr(trial, "fingerprint", lambda: "f" * 64)
    patch.setattr(data, "fingerprint", lambda networks: "f" * 64)
    found = {"axis": torch.linspace(-1, 1, 600).view(3, 200)}
    patch.setattr(trial, "studied", noted(did, lambda p: "studied", lambda p: found))

    class Distances:
        def __init__(self, i: int) -> None:
            self.distance = torch.arange(50.0) + i

    def admit(p: Any, seed: int, at: range, t: int) -> Any:
        did.append(("limit", at[0]))
        return Distances(at[0])

    def look(p: Any, seed: int, i: int) -> list[bool]:
        did.append(("ill", i))
        return [j % 5 == 0 for j in range(100)]

    patch.setattr(trial.treatment, "admit", admit)
    patch.setattr(trial, "look", look)
    patch.setattr(trial, "PATIENTS", 3)

    def dosed(ward: Any, name: str, rows: Any, ill: Any) -> Any:
        work = noted(did, lambda i: ("dose", i), lambda i: ward.limit * i)
        return {"strengths": [a["rows"] for a in runner.job(name, ill, work)]}

    patch.setattr(trial, "_dosed", dosed)
    jobs.main(["protocol"])


def doses_done(folder: Path) -> set[Any]:
    names = {"protocol_limit": "limit", "protocol_ill": "ill", "protocol_sweep": "dose"}
    found: set[Any] = {
        (names[path.parent.parent.name], json.loads(path.read_bytes())["item"])
        for path in (folder / "scratch").rglob("*.json")
    }
    return found | ({"studied"} if list(folder.glob("scratch/kept-*.safetensors")) else set())


def run_notebooks(folder: Path, patch: Patch, did: Did) -> None:
    """`make run` up to the book, with kernels that answer at once."""

    async def ran(path: Path, quick: bool, threads: int, tick: Callable[[], object]) -> Any:
        nb = execute.read(path)
        for cell in execute.code_cells(nb):
            cell.outputs = [new_output("stream", text=f"what {cell.source} gives\n")]
        did.append(path.stem)
        return nb, None

    patch.setattr(execute, "run", ran)
    patch.setattr(execute, "package_digest", lambda: "p" * 64)
    patch.setattr(time, "monotonic", lambda: 0.0)
    execute.execute(notebooks(folder), folder=folder, jobs=1)


def notebooks(folder: Path) -> list[Path]:
    place = folder.parent / "notebooks"
    paths = [place / f"0{i}_x.ipynb" for i in range(1, 5)]
    for path in paths:
        if not path.exists():
            place.mkdir(exist_ok=True)
            cells = [new_code_cell(f"{path.stem[:2]} + {i}", id=f"cell-{i}") for i in range(3)]
            nbformat.write(new_notebook(cells=cells), path)
    return paths


def notebooks_done(folder: Path) -> set[Any]:
    return {path.stem for path in folder.glob("*.ipynb")}


def run_clips(folder: Path, patch: Patch, did: Did) -> None:
    """`make clips` of one chapter, the film small, and the repository's copies renewed."""
    patch.setattr(clips, "CLIPS", folder / "clips")
    patch.setattr(clips, "KEPT", folder / "kept")
    patch.setattr(clips, "NAMES", {"05": "basis"})
    scene = noted(did, lambda: "scene", lambda: scenes.failing_basis(n=5))
    patch.setattr(clips, "BY_CHAPTER", {"05": scene})
    patch.setattr(clips, "clip", functools.partial(clips.clip, size=(64, 36)))
    clips.clips(["05"], keep=True)


def run_lab(folder: Path, patch: Patch, did: Did) -> None:
    """`make lab`: the reader's copies of the chapters."""
    patch.setattr(build, "ROOT", folder)
    patch.setattr(build, "chapters", lambda: notebooks(folder))
    patch.setattr(build.subprocess, "run", lambda words: did.append("opened"))
    build.lab()


TOOLS = {
    "atlas": Tool(run_atlas, times_done),
    "training": Tool(run_training, steps_done, bits),
    "report": Tool(run_report, parts_done),
    "edit": Tool(run_edit, directions_done),
    "sweep": Tool(run_crowds, worlds_done),
    "protocol": Tool(run_protocol, doses_done),
    "run": Tool(run_notebooks, notebooks_done),
    "clips": Tool(run_clips, lambda folder: set()),
    "lab": Tool(run_lab, lambda folder: set()),
}
KILLS = {
    "atlas": 8, "training": 6, "report": 4, "edit": 6, "sweep": 10, "protocol": 14, "run": 14,
    "clips": 8, "lab": 16,
}  # fmt: skip
QUICK, LONG = {"lab"}, {"run", "protocol"}


def each(*names: str) -> Any:
    marks = {name: [] if name in QUICK else [pytest.mark.long] for name in QUICK | LONG}
    found = [
        pytest.param(name, marks=marks.get(name, [pytest.mark.slow])) for name in names or TOOLS
    ]
    return pytest.mark.parametrize("name", found)


@each()
def test_killed_at_any_moment_it_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    """86 moments of all tools; and a disk that is full at two places, then has space again."""
    assert sum(KILLS.values()) == 86
    tool, folder = TOOLS[name], tmp_path / "work"
    whole = undisturbed(tool, folder)
    survives(tool, folder, whole, KILLS[name])
    for share in (0.2, 0.9):
        said = out_of_room(tool, folder, whole, int(share * whole.written))
        assert str(folder) in said and os.strerror(errno.ENOSPC) in said
        assert "What is finished is kept: mend that (a full disk: free some space)" in said


@each(*(name for name in TOOLS if name != "lab"))
def test_a_folder_that_takes_no_files_is_told_before_the_work(name: str, tmp_path: Path) -> None:
    """New, and in the middle of the work; opened again it goes on."""
    tool, folder = TOOLS[name], tmp_path / "work"
    whole, did = undisturbed(tool, folder), Did()
    for at in (1, whole.moments // 2):
        shutil.rmtree(folder)
        live(tool, folder, at=at)
        folder.mkdir(exist_ok=True)
        with closed(folder), Patch.context() as patch:
            with pytest.raises(OSError, match=f"{folder}.* takes no files: Permission denied. .* "
                               "mend that, or name another folder"):  # fmt: skip
                tool.run(folder, patch, did)
        assert did == []
        go_on(tool, folder, whole)


def write_in_place(path: Path, i: int) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("x" * 100 * i)


def store_by_the_clock(path: Path, i: int) -> None:
    data.store(path, str(time.monotonic_ns()).encode())


@pytest.mark.parametrize(
    ("write", "resumes", "fault"),
    [
        (lambda path, i: data.store(path, b"x" * 100 * i), True, None),
        (write_in_place, True, "neither whole nor absent"),
        (store_by_the_clock, True, "neither whole nor absent"),
        (lambda path, i: data.store(path, b"x" * 100 * i), False, "finished is done again"),
    ],
)
def test_a_naive_writer_is_found_out(
    write: Callable[[Path, int], None], resumes: bool, fault: str | None, tmp_path: Path
) -> None:
    def run(folder: Path, patch: Patch, did: Did) -> None:
        for i in (1, 2, 3):
            path = folder / f"{i}.txt"
            if not (resumes and path.exists()):
                did.append(i)
                write(path, i)

    tool = Tool(run, lambda folder: {int(path.stem) for path in folder.glob("?.txt")})
    whole = undisturbed(tool, tmp_path / "work")
    if fault is None:
        return survives(tool, tmp_path / "work", whole, whole.moments)
    with pytest.raises(AssertionError, match=fault):
        survives(tool, tmp_path / "work", whole, whole.moments)


def draw_cover(folder: Path, patch: Patch, did: Did) -> None:
    patch.setattr(cover, "SIZE", 16)
    did.append(cover.draw(folder / "cover.png"))


def lay_out(folder: Path, patch: Patch, did: Did) -> None:
    """What `make ship` makes of a trained patient."""
    patch.setattr(train, "RUNS", folder)
    patch.setitem(train.PATIENTS, "understudy", standins.SMALL)
    half = {k: v.half() for k, v in train.make_unet("understudy").state_dict().items()}
    did.append(ship._folder("understudy", half))


@pytest.mark.parametrize("run", [draw_cover, lay_out])
def test_what_is_made_at_once_is_whole_or_absent(run: Any, tmp_path: Path) -> None:
    tool = Tool(run, lambda folder: set())
    whole = undisturbed(tool, tmp_path / "work")
    survives(tool, tmp_path / "work", whole, 4)


def test_what_a_killed_process_left_goes_when_the_file_is_made_again(tmp_path: Path) -> None:
    """And nothing else: neither what a living process writes, nor what is young and may be another
    machine's, nor files of another name."""
    gone = 2**22 + 1  # more than Linux and macOS count their processes
    dead = [tmp_path / f"a.json.{gone}.part", tmp_path / f".film-{gone}_x" / "a.gif"]
    living = [tmp_path / f"a.json.{os.getppid()}.part", tmp_path / f".film-{os.getppid()}_x" / "y"]
    others = [f"b.json.{gone}.part", "a.json.part", "axjson.7.part", f"a.json.{gone}.part.gz"]
    kept = [*living, *(tmp_path / name for name in others), tmp_path / ".film-x" / "y"]
    probe, long_ago = tmp_path / f".{gone}.part", time.time() - 2 * data.LEFT_FOR
    for path in [*dead, *kept, probe]:
        path.parent.mkdir(exist_ok=True)
        path.touch()
        for old in {path, path.parent} - {tmp_path}:
            os.utime(old, (long_ago, long_ago))
    young = [tmp_path / f"a.json.{gone + 1}.part", tmp_path / f".film-{gone + 1}_x" / "y"]
    for path in young:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    kept += young
    data.claim(tmp_path)
    data.store(tmp_path / "a.json", b"{}")
    film.clip([np.zeros((8, 8, 3), np.uint8)], tmp_path / "a.gif")
    assert not dead[0].exists() and not dead[1].parent.exists()
    assert all(path.exists() for path in kept) and not probe.exists()
    assert {p.name for p in tmp_path.glob("a.*") if p not in kept} == {"a.json", "a.gif"}


def test_a_folder_that_may_not_be_read_takes_files(tmp_path: Path, monkeypatch: Patch) -> None:
    def closed(folder: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", closed)
    data.claim(tmp_path)
    data.store(tmp_path / "a.json", b"{}")
    assert (tmp_path / "a.json").read_bytes() == b"{}"


def test_the_rest_of_a_killed_job_changes_no_chapter(tmp_path: Path, monkeypatch: Patch) -> None:
    """What a kill leaves in data/results/ is no table: no outputs become stale by it."""
    (tmp_path / "data" / "results").mkdir(parents=True)
    monkeypatch.setattr(execute, "ROOT", tmp_path)
    digests = []
    for name in ("a.json", "b.json.7.part", "b.json"):
        (tmp_path / "data" / "results" / name).touch()
        digests.append(execute.package_digest.__wrapped__())
    assert digests[0] == digests[1] != digests[2]


# Processes, killed by SIGKILL --------------------------------------------------------------------


def start(*words: Any, several: bool = False) -> subprocess.CompletedProcess[str]:
    launcher = "-m torch.distributed.run --standalone --nproc_per_node 2".split() if several else []
    command = [sys.executable, *launcher, str(ROOT / "tests" / "killing.py"), *map(str, words)]
    path = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=os.environ | path, capture_output=True, text=True)


def remains(folder: Path) -> dict[str, int]:
    """Every file and its size, parts too, but for the names that each process gives them."""
    own = re.compile(r"\.\d+(?=\.part)|(?<=\.film-)\w+")
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {own.sub("", str(p.relative_to(folder))): p.stat().st_size for p in files}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["training", "sweep", "clips"])
def test_a_process_that_is_killed_leaves_what_is_left_here(
    name: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    tool, folder = TOOLS[name], tmp_path / "work"
    whole = undisturbed(tool, folder)
    at = random.Random(1).randint(whole.moments // 3, whole.moments)
    shutil.rmtree(folder)
    live(tool, folder, at=at)
    here = remains(folder)
    shutil.rmtree(folder)
    done = start(name, folder, at)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert remains(folder) == here
    monkeypatch.setattr(data, "LEFT_FOR", -1)  # as if it had been left long ago
    go_on(tool, folder, whole)
    assert all(map(final, remains(folder)))  # what the killed one left has gone


@pytest.mark.slow
def test_two_processes_one_of_which_is_killed_go_on_together(tmp_path: Path) -> None:
    """Each of the two in its turn; the bits are those of one process."""
    tool, folder, kept = TOOLS["atlas"], tmp_path / "work", dict[Path, int]()
    whole, draw = undisturbed(tool, folder), random.Random(2)
    shutil.rmtree(folder)
    for rank, last in ((0, 16), (1, 6)):
        done = start("atlas", folder, draw.randint(1, last), rank, several=True)
        assert done.returncode and "Signal 9 (SIGKILL)" in done.stderr, done.stderr
        check_left(tool, folder, whole)
        times = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
        assert kept.items() <= times.items()
        kept = times
    done = start("atlas", folder, 0, several=True)
    assert done.returncode == 0, done.stderr
    assert content(folder, Path.read_bytes) == whole.end
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in kept}.items()


@pytest.mark.slow
@pytest.mark.notebook
def test_a_notebook_that_kills_its_run_is_gone_on_with(tmp_path: Path) -> None:
    """With real kernels; the first notebook's run is kept, the second is run from its beginning."""
    flag = tmp_path / "flag"
    kill = f"""import os, pathlib, signal
flag = pathlib.Path({str(flag)!r})
if not flag.exists():
    flag.touch()
    os.kill(os.getppid(), signal.SIGKILL)"""
    paths = []
    for name, sources in (("01_first", ["1 + 1"]), ("02_kills", ["2 + 2", kill, "3 + 3"])):
        cells = [new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
        paths.append(tmp_path / f"{name}.ipynb")
        nbformat.write(new_notebook(cells=cells), paths[-1])
    words = f"""from pathlib import Path
from book.execute import execute
execute([Path({str(paths[0])!r}), Path({str(paths[1])!r})], folder=Path({str(tmp_path)!r}, "run"),
    jobs=1)"""
    command, copies = [sys.executable, "-c", words], [tmp_path / "run" / p.name for p in paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert copies[0].exists() and not copies[1].exists()
    before = copies[0].read_bytes(), copies[0].stat().st_mtime_ns
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert before == (copies[0].read_bytes(), copies[0].stat().st_mtime_ns)
    first, _, third = execute.code_cells(execute.read(copies[1]))
    assert [c.outputs[0].data["text/plain"] for c in (first, third)] == ["4", "6"]

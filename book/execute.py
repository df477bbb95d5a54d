"""Execute notebooks, each once in a fresh kernel, and keep the copies that did not change."""

import asyncio
import contextlib
import functools
import hashlib
import importlib.metadata
import os
import platform
import queue
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.asynchronous import AsyncKernelClient
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError
from tqdm import tqdm
from traitlets.config import Config

from book.paths import BUILD, ROOT, chapters
from mathkit import data
from mathkit.diffusion import galaxies

SECONDS_A_CELL = 3600
NUDGE_SECONDS = 3.0
STILL_SECONDS = 30.0
TRIES = 3


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook: `error` is None, or names file, cell and reason."""

    path: Path
    copy: Path
    seconds: float
    error: str | None = None


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(nb: Any) -> list[Any]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


@functools.cache
def package_digest() -> str:
    """One hash of what every chapter rests on: the package and what it loads from data/."""
    return files_digest(
        ROOT, "mathkit/**/*.py", "studies/*.py", "data/*.json", "data/results/*.json"
    )


def files_digest(root: Path, *patterns: str) -> str:
    """One hash of the names and contents of the files below `root` that match."""
    files = sorted(p for pattern in patterns for p in root.glob(pattern))
    rows = (f"{p.relative_to(root).as_posix()} {digest(p.read_bytes())}\n" for p in files)
    return digest("".join(rows).encode())


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fingerprint(nb: Any) -> str:
    """Hash of all that decides a notebook's outputs: its code, the package and the data."""
    cells = [(cell.source, sorted(cell.metadata.get("tags", []))) for cell in code_cells(nb)]
    return digest(f"{cells} {package_digest()}".encode())


def setting(nb: Any, quick: bool) -> str:
    """What else decides them on this machine, for the copies under _build/."""
    versions = [importlib.metadata.version(name) for name in ("torch", "diffusers", "matplotlib")]
    other = data.folders()[:1] if os.environ.get("MATHKIT_DATA") else []
    mine = [files_digest(folder, "*.json", "results/*.json") for folder in other]
    if any("galaxies" in cell.source for cell in code_cells(nb)):
        mine += ["galaxies"] * galaxies.installed()
    return " ".join(["quick" if quick else "full", platform.python_version(), *versions, *mine])


def graft(nb: Any, run: Any) -> Any:
    """The notebook as it reads now, with the outputs of an earlier run of it."""
    for cell, done in zip(code_cells(nb), code_cells(run), strict=True):
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
    return nb


def kept(path: Path, copy: Path, quick: bool) -> Any | None:
    """The stored run of a notebook, if it is still what a new run would give."""
    if not copy.exists():
        return None
    run, nb = read(copy), read(path)
    key = {"fingerprint": fingerprint(nb), "setting": setting(nb, quick)}
    same = all(run.metadata.get("mathkit_run", {}).get(k) == v for k, v in key.items())
    return run if same else None


def client(nb: Any, folder: Path, scratch: str, hooks: dict[str, Any]) -> NotebookClient:
    config = Config()
    if os.name != "nt":  # no ports to race for; the socket's path must be absolute and short
        config.KernelManager.transport = "ipc"
        config.KernelManager.ip = f"{scratch}/k"
    return NotebookClient(
        nb, timeout=SECONDS_A_CELL, record_timing=False, store_widget_state=False,
        coalesce_streams=True, kernel_name="python3", config=config,
        extra_arguments=["--Application.log_level=50"],
        resources={"metadata": {"path": str(folder)}}, **hooks,
    )  # fmt: skip


def environment(quick: bool, threads: int, scratch: str) -> dict[str, str]:
    own = {"OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": "0", "IPYTHONDIR": scratch}
    clean = {k: v for k, v in os.environ.items() if k not in ("MATHKIT_QUICK", "MPLBACKEND")}
    # This clone's package, whatever other clone the environment was made in.
    own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), clean.get("PYTHONPATH")]))
    if clean.get("MATHKIT_DATA"):  # kernels run in notebooks/
        own["MATHKIT_DATA"] = os.path.abspath(clean["MATHKIT_DATA"])
    return {**clean, **own, **({"MATHKIT_QUICK": "1"} if quick else {})}


def own_ctrl_c() -> None:
    """Undo the client's handlers, which stop one kernel of several: let Ctrl-C stop them all."""
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


class Stalled(Exception):
    """The kernel has nothing to do and the client still waits for it."""


async def watch(runner: NotebookClient, beats: dict[str, int]) -> None:
    """Return once the kernel has answered for STILL_SECONDS while the run made no progress.

    A reply that came in while the client was sending a widget's message can stay unseen until the
    next one arrives, or for ever. So the client's own channel is nudged now and then, and a second
    client asks on the same channel: its answer says that the kernel is not busy with a cell.
    """
    probe, idle, seen = None, 0.0, beats["count"]
    try:
        while idle < STILL_SECONDS:
            await asyncio.sleep(NUDGE_SECONDS)
            if runner.kc is None or runner.km is None:
                continue
            if probe is None:
                probe = second(runner)
            runner.kc.kernel_info()
            free, seen, before = await answers(probe), beats["count"], seen
            idle = idle + NUDGE_SECONDS if free and seen == before else 0.0
    finally:
        if probe is not None:
            probe.stop_channels()


def second(runner: NotebookClient) -> AsyncKernelClient:
    """Another client of the same kernel, with a session of its own: two with one identity would
    get each other's replies."""
    probe = AsyncKernelClient()
    probe.load_connection_info(runner.km.get_connection_info())  # type: ignore[union-attr]
    probe.start_channels(iopub=False, stdin=False, hb=False, control=False)
    return probe


async def answers(probe: Any) -> bool:
    """Whether the kernel replies within a second."""
    asked = probe.kernel_info()
    with contextlib.suppress(queue.Empty):
        while True:
            reply = await probe.get_shell_msg(timeout=1)
            if reply["parent_header"].get("msg_id") == asked:
                return True
    return False


async def watched(runner: NotebookClient, beats: dict[str, int], env: dict[str, str]) -> None:
    """Execute the client's notebook; raises Stalled where it stands still."""
    work = asyncio.ensure_future(runner.async_execute(env=env))
    watcher = asyncio.ensure_future(watch(runner, beats))
    try:
        await asyncio.wait({work, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise Stalled
        await work
    finally:
        for task in (watcher, work):
            task.cancel()
        await asyncio.gather(watcher, work, return_exceptions=True)


async def run(
    path: Path, quick: bool, threads: int, tick: Callable[[], object]
) -> tuple[Any, str | None]:
    """A notebook executed top to bottom, and the error that stopped it, if one did.

    One that stands still is begun again in a fresh kernel, TRIES times in all.
    """
    for _ in range(TRIES):
        with contextlib.suppress(Stalled):
            return await run_once(path, quick, threads, tick)
    return read(path), f"{path.name} stood still {TRIES} times: the kernel idle, its reply unseen"


async def run_once(
    path: Path, quick: bool, threads: int, tick: Callable[[], object]
) -> tuple[Any, str | None]:
    nb = read(path)
    at, beats = {"index": 0}, {"count": 0}

    def begun(cell: Any, cell_index: int) -> None:
        at["index"], beats["count"] = cell_index, beats["count"] + 1

    def ended(**done: Any) -> None:
        beats["count"] += 1
        tick()

    hooks = {
        "on_cell_start": begun,
        "on_cell_executed": ended,
        "on_notebook_start": lambda notebook: own_ctrl_c(),
    }
    with tempfile.TemporaryDirectory(prefix="nbk-", ignore_cleanup_errors=True) as scratch:
        runner = client(nb, path.parent, scratch, hooks)
        try:
            await watched(runner, beats, environment(quick, threads, scratch))
        except (CellExecutionError, CellControlSignal, DeadKernelError, RuntimeError) as error:
            return nb, report(path, nb.cells[at["index"]], at["index"], error)
    return nb, None


def report(path: Path, cell: Any, index: int, error: Exception) -> str:
    """File, cell, reason, source and traceback of a failure, in that order."""
    reason = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
    head = f"{path.name}, cell {index} (id {cell.get('id', '?')}): {reason}"
    trace = re.sub(r"\x1b\[[0-9;]*m", "", getattr(error, "traceback", ""))
    return f"{head}\n{cell.source}\n{trace}".rstrip()


def keep(nb: Any, copy: Path, quick: bool, seconds: float) -> None:
    stamp = {"fingerprint": fingerprint(nb), "setting": setting(nb, quick)}
    nb.metadata["mathkit_run"] = stamp | {"seconds": round(seconds)}
    data.store(copy, f"{nbformat.writes(nb)}\n".encode())


async def gather(
    todo: Sequence[tuple[Path, Path]], quick: bool, jobs: int, threads: int, bar: Any
) -> list[Outcome]:
    """Run the notebooks, `jobs` at a time; one that fails does not stop the others."""
    free = asyncio.Semaphore(jobs)

    async def one(path: Path, copy: Path) -> Outcome:
        async with free:
            start = time.monotonic()
            nb, error = await run(path, quick, threads, bar.update)
            seconds = time.monotonic() - start
        copy.unlink(missing_ok=True)
        if error is None:
            keep(nb, copy, quick, seconds)
        bar.write(f"{path.stem:<40} {'done' if error is None else 'FAILED'} in {seconds:.0f} s")
        return Outcome(path, copy, seconds, error)

    return await asyncio.gather(*(one(path, copy) for path, copy in todo))


def execute(
    paths: Sequence[Path], quick: bool = False, jobs: int | None = None,
    threads: int | None = None, folder: Path | None = None,
) -> list[Outcome]:  # fmt: skip
    """Every notebook executed, unless its stored copy still holds; copies go to `folder`."""
    folder = folder or BUILD / ("quick" if quick else "run")
    jobs = jobs or max(1, min(4, cores()))
    threads = threads or max(1, cores() // jobs)
    copies = {path: folder / path.name for path in paths}
    stored = {path: kept(path, copy, quick) for path, copy in copies.items()}
    todo = [(path, copy) for path, copy in copies.items() if stored[path] is None]
    if todo:
        data.claim(folder)
    cells = sum(bool(c.source.strip()) for path, _ in todo for c in code_cells(read(path)))
    with tqdm(total=cells, unit="cell", desc=f"{len(todo)} notebooks", disable=not todo,
              file=sys.stderr, mininterval=1.0) as bar:  # fmt: skip
        fresh = asyncio.run(gather(todo, quick, jobs, threads, bar))
    done = {o.path: o for o in fresh}
    return [done.get(p) or Outcome(p, copies[p], seconds_of(stored[p])) for p in paths]


def seconds_of(run: Any) -> float:
    return float(run.metadata["mathkit_run"]["seconds"])


@functools.cache
def once() -> dict[str, Outcome]:
    """All chapters, executed at most once in this process: what the tests share."""
    return {outcome.path.stem: outcome for outcome in execute(chapters())}

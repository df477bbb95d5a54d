"""The atlas on two machines: each with a folder of its own, over one that they share."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import UNTRAINED
from test_atlas import FLAGS, ROOT, SMALL, content_of, job

from mathkit.tools import atlas

pytestmark = [UNTRAINED, pytest.mark.slow]
LONG = "--samples 0:12 --times 999,749,500,250,0 --k 3 --steps 5".split()
ALL = {**SMALL, "samples": [*range(12)], "times": [999, 749, 500, 250, 0]}
Node = subprocess.Popen[str]


@pytest.fixture
def started() -> Iterator[list[Node]]:
    """Whatever is still running at the end is ended."""
    nodes: list[Node] = []
    yield nodes
    for node in nodes:
        lost(node)


def lost(node: Node) -> None:
    """The machine is gone: the launcher and its process, at once."""
    if node.poll() is None:
        for process in (*psutil.Process(node.pid).children(recursive=True), node):
            process.kill()
        node.communicate()


def start(started: list[Node], model: Path, shared: Path, flags: list[str]) -> list[Node]:
    """Two nodes of one process each. Each sees the shared folder under a name of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared.mkdir(exist_ok=True)
    for rank in (0, 1):
        home = shared.parent / f"node{rank}"
        home.mkdir(exist_ok=True)
        if not (home / "shared").exists():
            (home / "shared").symlink_to(shared)
        launch = ["--nnodes", "2", "--node_rank", str(rank), "--nproc_per_node", "1"]
        launch += ["--master_addr", "127.0.0.1", "--master_port", str(port), "-m", "mathkit"]
        words = ["atlas", "--model", str(model), "--out", "shared/atlas", "--device", "cpu", *flags]
        started.append(
            subprocess.Popen(
                job("torch.distributed.run", *launch, *words), cwd=home, text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    return started[-2:]


def test_two_nodes_agree_with_one(tiny: Path, tmp_path: Path, started: list[Node]) -> None:
    nodes = start(started, tiny, tmp_path / "shared", FLAGS)
    said = [node.communicate(timeout=240) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "0 of 4 bases finished; 4 to do" in said[0][0]
    atlas.build(tiny, tmp_path / "whole", **SMALL)
    assert content_of(tmp_path / "shared" / "atlas") == content_of(tmp_path / "whole")


def test_what_a_lost_node_leaves_is_taken_over(
    tiny: Path, tmp_path: Path, started: list[Node]
) -> None:
    out = tmp_path / "shared" / "atlas"
    _, second = start(started, tiny, tmp_path / "shared", LONG)
    limit = time.monotonic() + 240
    while len(list(out.glob("*.safetensors"))) < 8:
        assert time.monotonic() < limit and second.poll() is None
        time.sleep(0.01)
    lost(second)
    lost(started[0])
    left = atlas.load_atlas(out).missing
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert 0 < len(left) <= len(atlas.load_atlas(out).items) - 8
    again = start(started, tiny, tmp_path / "shared", LONG)
    said = [node.communicate(timeout=240) for node in again]
    assert [node.returncode for node in again] == [0, 0], said
    assert f"{60 - len(left)} of 60 bases finished; {len(left)} to do" in said[0][0]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    atlas.build(tiny, tmp_path / "whole", **ALL)
    assert content_of(out) == content_of(tmp_path / "whole")

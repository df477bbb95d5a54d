"""The atlas: each item is mk.svd of its map, and neither a full disk nor a second process changes
one byte of it; nor a kill, in test_killed.py."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import standins
import torch
from conftest import UNTRAINED, make_tiny_unet
from torch import Tensor

import mathkit as mk
from mathkit import data
from mathkit.__main__ import main as command
from mathkit.diffusion import networks, sampling
from mathkit.diffusion.encoder import MAPS
from mathkit.tools import atlas

pytestmark = [UNTRAINED, pytest.mark.long]

ROOT = Path(__file__).resolve().parent.parent
SMALL: dict[str, Any] = {"samples": [0, 3], "times": [999, 500], "k": 3, "steps": 5}
FLAGS = "--samples 0,3 --times 999,500 --k 3 --steps 5".split()
GRID = [999, 749, 500, 250, 0]
Bytes = dict[str, bytes]


def save(place: Path, seed: int = 0) -> Path:
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(make_tiny_unet(seed=seed), DDPMScheduler()).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished atlas that no test changes."""
    place = tmp_path_factory.mktemp("atlas") / "whole"
    atlas.build(tiny, place, **SMALL)
    return place


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A finished atlas to spoil."""
    place = tmp_path / "copy"
    place.mkdir()
    for name, content in content_of(whole).items():
        (place / name).write_bytes(content)
    return place


def content_of(folder: Path) -> Bytes:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# What an item is ---------------------------------------------------------------------------------


def walk(p: Any, i: int) -> dict[int, Tensor]:
    """x_t of sample i at each time of the grid, by DDIM written out, from mk.sample's own start."""
    x = sampling.start(p, 0, [i])
    states = {GRID[0]: x}
    for now, then in pairwise([*GRID, -1]):
        a, b = float(p.alphas_cumprod[now]), float(p.alphas_cumprod[then]) if then >= 0 else 1.0
        eps = p.noise(x, now)
        x = b**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
        states[then] = x
    return states


def test_items_are_the_svd_at_the_samples_own_states(tiny: Path, whole: Path) -> None:
    p, found = mk.load_model(tiny), atlas.load_atlas(whole)
    assert found.items == [(0, 999), (0, 500), (3, 999), (3, 500)] and found.missing == []
    for i, t in found.items:
        states = walk(p, i)
        x = {999: states[999]}
        mk.sample(p, index=[i], steps=5, callback=lambda step, t, y, x=x: x.__setitem__(t, y))
        torch.testing.assert_close(x[t], states[t], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(x[-1], states[-1], rtol=1e-3, atol=1e-3)
        r, expected = found[i, t], mk.svd(mk.jacobian(mk.encoder(p, t), x[t]), 3)
        # Found side by side with others, so to rounding and to the tolerance of the search.
        torch.testing.assert_close(r.S, expected.S, rtol=1e-4, atol=0)
        A = mk.jacobian(mk.encoder(p, t), x[t])
        for off in (
            A.push(r.V) - r.S[:, None, None, None] * r.U,
            A.pull(r.U) - r.S[:, None, None, None] * r.V,
        ):
            assert off.flatten(1).norm(dim=1).max() <= 1.1e-3 * r.S[0]
        assert r.U.shape == (3, 8, 2, 2) and r.V.shape == (3, 3, 16, 16)
        assert len([*r]) == 3 and r.passes.push > 0 and r.passes.pull > 0
        assert r.gap == pytest.approx(expected.gap, rel=1e-2) and r.angle_bound is not None


@pytest.mark.parametrize("name", MAPS)
def test_each_map_agrees_with_its_dense_jacobian(tiny: Path, tmp_path: Path, name: str) -> None:
    atlas.build(tiny, tmp_path, name, samples=[1], times=[500], k=2, steps=5, tol=1e-5)
    abar = mk.load_model(tiny).alphas_cumprod
    p = networks.UNetModel(make_tiny_unet(torch.float64), abar)
    x = walk(mk.load_model(tiny), 1)[500].double()
    f: Callable[[Tensor], Tensor] = {
        "h": mk.encoder(p, 500),
        "pooled": lambda x: mk.encoder(p, 500)(x).sum((2, 3)),
        "mean": lambda x: (x - (1 - abar[500]).sqrt() * p.unet(x, 500).sample) / abar[500].sqrt(),
    }[name]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        J = torch.autograd.functional.jacobian(lambda x: f(x).flatten(), x).flatten(1)
    _, S, Vh = torch.linalg.svd(J, full_matrices=False)
    U, s, V = atlas.load_atlas(tmp_path)[1, 500]
    torch.testing.assert_close(s.double(), S[:2], rtol=1e-4, atol=0)
    kept = V.flatten(1).double() @ Vh[:2].T
    torch.testing.assert_close(kept @ kept.T, torch.eye(2).double(), rtol=0, atol=1e-3)
    image = (V.flatten(1).double() @ J.T - s.double()[:, None] * U.flatten(1).double()).norm(dim=1)
    assert float(image.max()) < 1e-4 * float(S[0])


def test_h_of_another_layer_is_kept_by_its_name(tiny: Path, whole: Path, tmp_path: Path) -> None:
    few: dict[str, Any] = {"samples": [1], "times": [500], "k": 2, "steps": 5}
    atlas.build(tiny, tmp_path, **few, at="up_blocks.1")
    found = atlas.load_atlas(tmp_path)
    p = mk.load_model(tiny)
    J = mk.jacobian(mk.encoder(p, 500, at="up_blocks.1"), walk(p, 1)[500]).dense()
    S = torch.linalg.svdvals(J.double())[:2]
    torch.testing.assert_close(found[1, 500].S.double(), S, rtol=1e-3, atol=0)
    assert found.settings["at"] == "up_blocks.1" and "map h at up_blocks.1" in repr(found)
    assert "at" not in atlas.load_atlas(whole).settings  # as before there was a choice
    with pytest.raises(ValueError, match="begun with other settings: at 'up_blocks.1', now None"):
        atlas.build(tiny, tmp_path, **few, at="mid_block")
    for at, name, message in (("nowhere", "h", "is a layer of p.unet"), ("conv_in", "mean", "at")):
        with pytest.raises(ValueError, match=message):
            atlas.build(tiny, tmp_path / "none", name, **few, at=at)
        assert not (tmp_path / "none").exists()


def test_the_nearest_grid_time_is_taken(tiny: Path, tmp_path: Path) -> None:
    atlas.build(tiny, tmp_path, samples=[0], times=[520, 480, 990], k=1, steps=5)
    assert atlas.load_atlas(tmp_path).settings["times"] == [500, 999]


def test_a_text_model_is_given_its_prompt(tmp_path: Path) -> None:
    standins.stable_diffusion(tmp_path / "model")
    for prompt in ("man", "a smiling man"):
        atlas.build(
            tmp_path / "model", tmp_path / prompt, samples=[0], times=[500], k=2, steps=3,
            prompt=prompt,
        )  # fmt: skip
    p = mk.load_model(tmp_path / "model").prompted("man")
    states: dict[int, Tensor] = {}
    mk.sample(p, 1, steps=3, callback=lambda step, t, x: states.__setitem__(t, x))
    ((_, t),) = atlas.load_atlas(tmp_path / "man").items
    expected = mk.svd(mk.jacobian(mk.encoder(p, t), states[t]), 2)
    torch.testing.assert_close(atlas.load_atlas(tmp_path / "man")[0, t].V, expected.V)
    other = atlas.load_atlas(tmp_path / "a smiling man")[0, t]
    assert not torch.allclose(other.S, expected.S, rtol=1e-4)
    guided = mk.load_model(tmp_path / "model").prompted("man", guidance=7, negative="a man")
    with pytest.raises(ValueError, match="other settings.*guidance 1.0, now 7"):
        atlas.build(guided, tmp_path / "man", samples=[0], times=[500], k=2, steps=3)


def test_more_processes_than_gpus_are_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes on a machine with 1 GPU: start one for each"):
        atlas.build(tiny, tmp_path / "new", **SMALL)


def test_an_atlas_of_a_built_in_model_stays_on_the_cpu(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(device: str) -> None:
        raise RuntimeError(f"asked for {device}")

    monkeypatch.setattr(atlas, "_processes", refuse)
    with pytest.raises(RuntimeError, match="asked for auto"):
        atlas.build(tiny, tmp_path / "new", **SMALL)
    monkeypatch.setattr(data, "built_in", lambda: [str(tiny)])
    with pytest.raises(RuntimeError, match="asked for cpu"):
        atlas.build(tiny, tmp_path / "new", **SMALL)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_halves_the_files(
    tiny: Path, whole: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    name = str(dtype).removeprefix("torch.")
    atlas.build(tiny, tmp_path, **SMALL, dtype=name)
    half, full = atlas.load_atlas(tmp_path)[3, 500], atlas.load_atlas(whole)[3, 500]
    assert half.U.dtype == half.V.dtype == dtype and torch.equal(half.S, full.S)
    assert torch.equal(half.V, full.V.to(dtype))
    sizes = [sum(map(len, content_of(folder).values())) for folder in (tmp_path, whole)]
    assert sizes[0] < 0.6 * sizes[1]


# Gone on with -------------------------------------------------------------------------------------


def test_what_is_finished_is_not_done_again(
    tiny: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = atlas.load_atlas(copy).path((3, 999))
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir() if path != lost}
    lost.unlink()
    assert atlas.load_atlas(copy).missing == [(3, 999)]
    atlas.build(tiny, copy, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir() if path != lost} == before
    monkeypatch.setattr(atlas, "svd", None)
    capsys.readouterr()
    atlas.build(tiny, copy, **SMALL)
    assert "4 of 4 bases finished" in capsys.readouterr().out


def job(*words: str) -> list[str]:
    return [sys.executable, "-m", *words]


@pytest.mark.slow
def test_two_processes_agree_with_one(tiny: Path, whole: Path, tmp_path: Path) -> None:
    two = job("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "mathkit")
    words = [*two, "atlas", "--model", str(tiny), "--out", str(tmp_path), "--device", "cpu", *FLAGS]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 of 4 bases finished; 4 to do" in done.stdout and done.stderr.count(" 0/2 ") == 1
    assert content_of(tmp_path) == content_of(whole)
    done = subprocess.run([*words, "--seed", "1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "begun with other settings: seed 0, now 1" in done.stderr


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"k": 2}, {"map": "pooled"}, {"tol": 1e-4}, {"seed": 1}, {"samples": [0, 2]}, {"steps": 9},
        {"times": [999, 0]}, {"threads": 2}, {"dtype": "float16"}, {"times": [500, 999]},
    ],
)  # fmt: skip
def test_other_settings_are_refused_by_name(tiny: Path, copy: Path, change: Any) -> None:
    before, (name,) = content_of(copy), change
    with pytest.raises(ValueError, match=rf"other settings: (.*; )?{name} .*, now "):
        atlas.build(tiny, copy, **SMALL | change)
    assert content_of(copy) == before


def test_other_weights_and_another_torch_are_refused(
    tiny: Path, copy: Path, tmp_path: Path
) -> None:
    save(tmp_path / "tiny", seed=1)
    with pytest.raises(ValueError, match="model .*, now .*; revision 'sha256:.*, now 'sha256:"):
        atlas.build(tmp_path / "tiny", copy, **SMALL)
    settings = atlas.load_atlas(copy).settings
    digest = data.sha256(tiny / "unet/diffusion_pytorch_model.safetensors")
    assert settings["revision"] == f"sha256:{digest}" and settings["torch"] == torch.__version__
    (copy / "atlas.json").write_text(json.dumps(settings | {"torch": "2.0"}))
    with pytest.raises(ValueError, match="other settings: torch '2.0', now '.*'. Give the same"):
        atlas.build(tiny, copy, **SMALL)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": 33}, r"1 \.\.\. min\(m, n\) = 32, got 33"),
        ({"k": 9, "map": "pooled"}, r"min\(m, n\) = 8, got 9"),
        ({"k": 0}, "got 0"),
        ({"map": "x"}, "map is one of h, pooled, mean, got 'x'"),
        ({"dtype": "int8"}, "dtype is one of"),
        ({"samples": []}, "at least one time and one sample"),
        ({"times": []}, "at least one time and one sample"),
        ({"samples": [1, 1]}, "no sample twice"),
        ({"samples": [-1]}, "a sample is an integer >= 0, got -1"),
        ({"times": [1000]}, r"t is an integer in 0 \.\.\. 999, got 1000"),
        ({"tol": 1.0}, r"tol is a share of s_1 in \[0, 1\)"),
        ({"threads": 0}, "threads is an integer >= 1"),
        ({"steps": 0}, "steps is an integer >= 1"),
        ({"prompt": "a man"}, "takes no prompt"),
        ({"device": "mps"}, "no device mps"),
        ({"revision": "main"}, "revision belongs to Hub repositories"),
    ],
)
def test_a_bad_argument_leaves_nothing_behind(
    tiny: Path, tmp_path: Path, change: Any, says: str
) -> None:
    if torch.backends.mps.is_available() and "device" in change:
        pytest.skip("there is such a device here")
    with pytest.raises(ValueError, match=says):
        atlas.build(tiny, tmp_path / "new", **SMALL | change)
    assert not (tmp_path / "new").exists()


# Damage ------------------------------------------------------------------------------------------


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: content[:5],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: flip(content, len(content) - 9),
        lambda content: flip(content, 3),
        lambda content: flip(content, content.index(b"residuals")),
        lambda content: content.replace(b"F32", b"I32"),
    ],
)
def test_a_damaged_file_is_named_and_made_again_when_deleted(
    tiny: Path, whole: Path, copy: Path, spoil: Callable[[bytes], bytes]
) -> None:
    path = atlas.load_atlas(copy).path((0, 500))
    path.write_bytes(spoil(path.read_bytes()))
    before = content_of(copy)
    says = rf"{path.name} is damaged, or not .*: delete it and run the job's command again"
    with pytest.raises(ValueError, match=says):
        atlas.load_atlas(copy)[0, 500]
    with pytest.raises(ValueError, match=says):
        atlas.build(tiny, copy, **SMALL)
    assert content_of(copy) == before != content_of(whole)
    path.unlink()
    atlas.build(tiny, copy, **SMALL)
    assert content_of(copy) == content_of(whole)


def test_files_that_changed_places_are_all_named(tiny: Path, copy: Path) -> None:
    found = atlas.load_atlas(copy)
    found.path((0, 500)).write_bytes(found.path((3, 500)).read_bytes())
    found.path((3, 999)).write_bytes(found.path((3, 500)).read_bytes())
    with pytest.raises(ValueError, match=r"basis of \(0, 500\)(.|\n)*basis of \(3, 999\)"):
        atlas.build(tiny, copy, **SMALL)
    assert found[3, 500].S[0] > 0
    (copy / "atlas.json").write_text(json.dumps(found.settings | {"tol": 1e-2}))
    with pytest.raises(ValueError, match=r"basis of \(3, 500\) with the settings of atlas.json"):
        atlas.load_atlas(copy)[3, 500]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_keeps_what_is_finished(
    tiny: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    calls, sync = [0], os.fsync

    def fails(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == 4:  # the settings, two items, then this one
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    says = f"could not be written: {os.strerror(code)}. What is finished is kept: .*same command"
    with pytest.raises(OSError, match=says):
        atlas.build(tiny, tmp_path, **SMALL)
    finished = [p.read_bytes() for p in tmp_path.iterdir() if p.suffix != ".part"]
    assert len(finished) == 3 and set(finished) <= set(content_of(whole).values())
    atlas.build(tiny, tmp_path, **SMALL)
    assert content_of(tmp_path) == content_of(whole)


def test_an_item_that_fails_is_named(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> Any:
        raise ValueError("the map gave NaN or infinity")

    monkeypatch.setattr(atlas, "svd", fails)
    with pytest.raises(ValueError, match="sample 0 at t = 999: the map gave NaN"):
        atlas.build(tiny, tmp_path, **SMALL)


# Reading it --------------------------------------------------------------------------------------


def test_reading_an_unfinished_atlas_says_so(copy: Path) -> None:
    found = atlas.load_atlas(copy)
    found.path((3, 500)).unlink()
    assert found.missing == [(3, 500)] and "1 of 4 items missing" in repr(found)
    assert found[0, 500].S[0] > 0
    with pytest.raises(FileNotFoundError, match=r"\(3, 500\) is not finished: 1 of the 4 items"):
        found[3, 500]
    for wrong in ((1, 500), (3, 501), 3):
        with pytest.raises(KeyError, match=r"of samples \[0, 3\] at t in \[999, 500\], got"):
            found[wrong]  # type: ignore[index]


def test_a_folder_without_an_atlas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no atlas.*atlas\.json"):
        atlas.load_atlas(tmp_path)
    for content in ("", "{", "[]", '{"samples": [0]}'):
        (tmp_path / "atlas.json").write_text(content)
        with pytest.raises(ValueError, match="no settings of an atlas"):
            atlas.load_atlas(tmp_path)


# The job -----------------------------------------------------------------------------------------


def test_the_command_makes_the_same_files(
    tiny: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["atlas", "--model", str(tiny), "--out", str(tmp_path / "new")]
    assert command([*words, *FLAGS]) == 0
    assert content_of(tmp_path / "new") == content_of(whole)
    said = capfd.readouterr()
    assert "0 of 4 bases finished; 4 to do, 0.04 MB" in said.out and "4/4" in said.err
    assert command([*words, *FLAGS, "--steps", "6"]) == 1
    assert "atlas: " in (said := capfd.readouterr()).err and "steps 5, now 6" in said.err


def test_lists_of_numbers_are_read() -> None:
    assert atlas._numbers("0:4") == [0, 1, 2, 3] and atlas._numbers("900,700") == [900, 700]
    assert atlas._numbers("5,0:2,7:12:2") == [5, 0, 1, 7, 9, 11]


def test_words_are_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(["atlas", "--out", "unused", "--samples", "0:x"])
    assert "--samples: expected 0:20 or 3,5,8, got '0:x'" in capsys.readouterr().err


def test_the_threads_are_those_of_the_settings(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(*args: Any) -> Any:
        raise ValueError(f"threads: {torch.get_num_threads()}")

    monkeypatch.setattr(atlas, "svd", count)
    with pytest.raises(ValueError, match="threads: 2"):
        atlas.build(tiny, tmp_path, samples=[0], times=[999], k=1, steps=1, threads=2)
    assert torch.get_num_threads() == 1


@pytest.mark.slow
def test_accelerate_is_loaded_when_it_is_used() -> None:
    heavy = "{'accelerate', 'diffusers'} & sys.modules.keys()"
    code = f"import sys, mathkit.tools.atlas; assert not {heavy}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

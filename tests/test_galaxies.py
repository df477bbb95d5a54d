"""The galaxies' network against the other library's formulas in numpy, its levels, its wheel."""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import galaxy_files
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import UNTRAINED
from torch import Tensor

import mathkit as mk
from book.execute import code_cells, read
from book.paths import chapters
from mathkit import data
from mathkit.chapters import galaxies as chapter
from mathkit.diffusion import galaxies
from mathkit.diffusion.galaxies import GalaxyModel, as_model, read_mixer
from studies import galaxies as sky

pytestmark = UNTRAINED


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return galaxy_files.write(tmp_path / "network.eqx", galaxy_files.arrays())


@pytest.fixture
def p(path: Path) -> GalaxyModel:
    return as_model(read_mixer(path), "a stand-in", "0")


@pytest.fixture
def p64(path: Path) -> GalaxyModel:
    return as_model(read_mixer(path).double(), "a stand-in", "0")


def layer_norm(y: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (y - y.mean()) / np.sqrt(y.var() + 1e-5) * weight + bias


def perceptron(y: np.ndarray, W0, b0, W1, b1) -> np.ndarray:
    return np.maximum(y @ W0.T + b0, 0) @ W1.T + b1


def by_numpy(arrays: list[np.ndarray], x: np.ndarray, tau: float) -> np.ndarray:
    """The score of x (side, side) at time tau as equinox computes it, patch by patch.

    Its ConvTranspose2d slides the stored kernel over the input with zeros between: at place (i, j)
    of a patch the weight is that of the opposite place.
    """
    conv, conv_b, out, out_b, *blocks = (a.astype(np.float64) for a in arrays)
    n = galaxy_files.PATCH
    both = np.stack([x, np.full_like(x, tau / arrays[-1])])
    cells = [(i, j) for i in range(0, len(x), n) for j in range(0, len(x), n)]
    y = np.stack([(conv * both[:, i : i + n, j : j + n]).sum((1, 2, 3)) for i, j in cells], 1)
    y = y + conv_b[:, 0]
    for at in range(0, len(blocks) - 3, 12):
        *weights, w1, c1, w2, c2 = blocks[at : at + 12]
        y = (y + perceptron(layer_norm(y, w1, c1), *weights[:4])).T
        y = (y + perceptron(layer_norm(y, w2, c2), *weights[4:])).T
    y = layer_norm(y, *blocks[-3:-1])
    picture = np.empty_like(x)
    for (i, j), column in zip(cells, y.T, strict=True):
        patch = np.tensordot(out[0], column, (0, 0))[::-1, ::-1]
        picture[i : i + n, j : j + n] = patch + out_b[0, 0, 0]
    return picture


@pytest.mark.parametrize("t", [0, 300, 999])
def test_the_network_is_the_other_library_s(p64: GalaxyModel, t: int) -> None:
    x = torch.randn(2, *p64.shape, dtype=torch.float64)
    tau = float(p64.unet.levels[t])
    scores = [by_numpy(galaxy_files.arrays(), item[0].numpy(), tau) for item in x]
    eps = -((1 - np.exp(-tau)) ** 0.5) * np.stack(scores)[:, None]
    np.testing.assert_allclose(p64.noise(x, t).numpy(), eps, rtol=1e-6, atol=1e-8)


def test_the_comparison_sees_a_kernel_that_is_not_turned(p64: GalaxyModel) -> None:
    kernel = p64.unet.conv_out.weight
    kernel.data = kernel.data.flip(2, 3)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        test_the_network_is_the_other_library_s(p64, 300)


def test_times_are_even_in_the_logarithm_of_signal_over_noise(p: GalaxyModel) -> None:
    abar = p.alphas_cumprod
    steps = (abar / (1 - abar)).log().diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps))
    torch.testing.assert_close(abar, torch.exp(-p.unet.levels.double()))
    assert float(p.unet.levels[-1]) == pytest.approx(galaxy_files.LAST)
    assert float(p.unet.levels[0]) == pytest.approx(galaxies.CLEANEST)


def test_half_precision_is_near(path: Path, p: GalaxyModel) -> None:
    """Its noise levels are not rounded with the weights."""
    half = as_model(read_mixer(path).bfloat16(), "a stand-in", "0")
    x = torch.randn(1, *p.shape)
    for t in (0, 500, 999):
        off = (half.noise(x, t) - p.noise(x, t)).norm() / p.noise(x, t).norm()
        assert half.noise(x, t).dtype == torch.float32 and float(off) < 0.05
    torch.testing.assert_close(half.scales(x, 5), p.scales(x, 5))
    assert torch.equal(half.unet.levels, p.unet.levels)


def test_images_and_light_of_x0(p: GalaxyModel) -> None:
    x = torch.linspace(-0.2, 9, 5).view(-1, 1, 1, 1).expand(5, *p.shape).contiguous()
    images = p.decode(x)
    assert -1.3 < float(images.min()) < float(images.max()) < 1
    torch.testing.assert_close(p.encode(images), x)
    torch.testing.assert_close(galaxies.flux(x), torch.exp(x / 10) - 1)
    with pytest.raises(ValueError, match=r"of x_0 p\.decode makes images"):
        p.encode(x)


def test_every_derivative_is_the_finite_difference(p64: GalaxyModel) -> None:
    x, v = torch.randn(2, 1, *p64.shape, dtype=torch.float64)
    f, e = mk.posterior_mean(p64, 400), 1e-6
    J = mk.jacobian(f, x)
    torch.testing.assert_close(J.push(v), (f(x + e * v) - f(x - e * v)) / (2 * e))
    mk.check_adjoint(J)


def test_a_sample_goes_down_and_back_up(p: GalaxyModel) -> None:
    x = mk.sample(p, 2, steps=3)
    assert x.shape == (2, *p.shape) and bool(x.isfinite().all())
    assert "a stand-in" in repr(p) and p.revision == "sha256:0"


def refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_mixer(path)


def test_a_file_of_another_layout_is_refused(tmp_path: Path) -> None:
    right, path = galaxy_files.arrays(), tmp_path / "network.eqx"
    refused(galaxy_files.write(path, right[:-1]), "is no such network: expected conv_in.*42 arrays")
    refused(galaxy_files.write(path, right[:7]), "is no such network")
    for i in (0, -3, -1):
        other = list(right)
        other[i] = np.ones(3, np.float32)
        refused(galaxy_files.write(path, other), "is no such network: expected conv_in.*43 arrays")
    refused(galaxy_files.write(path, [*right[:5], right[5][:-1], *right[6:]]), "is no such network")
    broken = [right[0] * np.nan, *right[1:]]
    refused(galaxy_files.write(path, broken), "NaN or infinity in array 1")
    path.write_bytes(path.read_bytes()[:-5])
    refused(path, "NaN|no whole file")
    path.write_bytes(b"not arrays")
    refused(path, "is no whole file of arrays")
    path.write_bytes(b"")
    refused(path, "got 0 arrays")


def test_a_pickle_in_the_file_is_not_run(tmp_path: Path) -> None:
    path, ran = tmp_path / "network.eqx", tmp_path / "ran"
    with open(path, "wb") as file:
        np.save(file, np.array([Opens(ran)], dtype=object), allow_pickle=True)
    refused(path, "is no whole file of arrays")
    assert not ran.exists()


class Opens:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.setattr(importlib.metadata, "version", missing)
    return monkeypatch


def test_without_the_wheel_one_command_is_named(no_wheel: pytest.MonkeyPatch) -> None:
    assert not galaxies.installed()
    with pytest.raises(ImportError, match=r"pip install --no-deps galaxygrad==0\.1\.9.*alice"):
        mk.load_model("galaxies")


def test_an_installed_file_is_read_if_it_is_the_known_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = galaxies.FILES["galaxies"][0]
    hashes = galaxy_files.installed(
        monkeypatch, tmp_path, {file: galaxy_files.arrays()}, known=False
    )
    with pytest.raises(ValueError, match="not the file of galaxygrad 0.1.9: expected SHA-256 4758"):
        mk.load_model("galaxies")
    digest = hashes[file]
    monkeypatch.setitem(galaxies.FILES, "galaxies", (file, digest))
    p = mk.load_model("galaxies")
    assert p.shape == (1, 16, 16) and p.revision == f"sha256:{digest}" and galaxies.installed()
    assert mk.load_model("galaxies", dtype=torch.float64).dtype == torch.float64
    with pytest.raises(ValueError, match="is missing: install it again"):
        mk.load_model("galaxies-32")
    for more in ({"revision": "main"}, {"scheduler": object()}):
        with pytest.raises(ValueError, match="'galaxies' has its own weights, noise levels"):
            mk.load_model("galaxies", **more)


def test_another_version_of_the_wheel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    galaxy_files.installed(monkeypatch, tmp_path, {}, "0.2.0")
    assert not galaxies.installed()
    with pytest.raises(ValueError, match=r"those of galaxygrad 0\.1\.9, got 0\.2\.0"):
        mk.load_model("galaxies")


there = pytest.mark.skipif(not galaxies.installed(), reason=f"needs {galaxies.INSTALL}")


@there
@pytest.mark.patient
@pytest.mark.parametrize(("name", "side"), [("galaxies", 64), ("galaxies-32", 32)])
def test_the_real_ones_are_faint_outside_and_bright_in_the_middle(name: str, side: int) -> None:
    p = mk.load_model(name)
    x = mk.sample(p, 4, steps=20)
    assert p.shape == (1, side, side) and sum(w.numel() for w in p.unet.parameters()) > 5e5
    assert float(x.min()) > -1 and 5 < float(x.amax((1, 2, 3)).min()) < float(x.max()) < 12
    edge, middle = border(x), x[..., side // 2 - 2 : side // 2 + 2, side // 2 - 2 : side // 2 + 2]
    assert float(edge.abs().mean()) < 0.3 < 2 < float(middle.mean())


def border(x: Tensor) -> Tensor:
    return torch.cat([x[..., 0, :], x[..., -1, :]])


@there
@pytest.mark.patient
def test_the_real_ones_come_back_from_an_inversion() -> None:
    p = mk.load_model("galaxies")
    x = mk.sample(p, 2, steps=50)
    y = mk.denoise(p, mk.invert(p, p.decode(x), 999, 50, refine=1), 999, 50)
    assert float((y - x).abs().max() / (x.max() - x.min())) < 0.05


# The study and the chapter -----------------------------------------------------------------------


def test_what_is_asked_for_is_the_gradient_through_the_posterior_mean(
    monkeypatch: pytest.MonkeyPatch, p64: GalaxyModel
) -> None:
    """J^T grad q from the dense Jacobian, of a measure that is linear: its first six numbers."""
    x = torch.randn(1, *p64.shape, dtype=torch.float64)
    rows = [chapter.FACTORS.index(name) for name in sky.ASKED]
    monkeypatch.setattr(chapter, "measure", lambda y: y.flatten(1)[:, :8] ** 2)
    J = mk.jacobian(mk.posterior_mean(p64, 400), x).dense()
    clean = p64.clean(x, 400).flatten()
    wanted = torch.stack([2 * clean[i] * J[i] for i in rows])
    torch.testing.assert_close(sky.asked(p64, x, 400).flatten(1), wanted)


def test_controls_are_as_long_as_what_they_stand_beside() -> None:
    V = torch.linalg.qr(torch.randn(256, 4)).Q.T.reshape(4, 1, 16, 16)
    found = sky.controls(V, 3)
    for name in ("smooth", "placed"):
        torch.testing.assert_close(found[name].flatten(1).norm(dim=1), torch.ones(4))
    assert all(torch.equal(v, sky.controls(V, 3)[name]) for name, v in found.items())
    assert not torch.equal(found["smooth"], sky.controls(V, 4)["smooth"])


def test_cosines_are_one_within_the_span_and_zero_across() -> None:
    V = torch.eye(5)[:2].reshape(2, 1, 5)
    T = torch.tensor([[3.0, 4, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 1, 0, 0]])
    torch.testing.assert_close(sky.cosines(V, T), torch.tensor([1, 0, 0.5]).double())


@there
@pytest.mark.patient
def test_a_stored_row_is_made_again() -> None:
    table, p = data.stored("galaxies"), mk.load_model("galaxies")
    assert table["revision"] == p.revision
    row = table["rows"][int(torch.randint(len(table["rows"]), ()))]
    x = sky.state(p, row["index"], row["t"])
    now = sky.effects(p, x, row["t"], sky.asked(p, x, row["t"]))
    S = chapter.spread(torch.tensor(table["crowd"]))
    off = (now - torch.tensor(row["effects"]["asked"])) / S
    assert float(off.abs().median()) < 0.02 and float(off.abs().max()) < 0.5


def cells() -> list[str]:
    """The code of chapter 14's galaxies, after the two cells they rest on."""
    (path,) = (path for path in chapters() if path.stem.startswith("14"))
    code = code_cells(read(path))
    before = [c.source for c in code if c.id in ("c04", "c09", "c39")]
    return before + [c.source for c in code if re.fullmatch(r"g\d\d", c.id)]


@pytest.mark.patient
@pytest.mark.parametrize("live", [False, pytest.param(True, marks=there)])
def test_the_chapter_tells_of_them_with_and_without_the_wheel(
    live: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(galaxies, "installed", lambda: live)
    names: dict[str, Any] = {}
    for source in cells():
        exec(compile(source, "chapter 14", "exec"), names)
        plt.close("all")
    said = capsys.readouterr().out
    assert ("live, galaxy 0" in said) == live == (galaxies.INSTALL not in said)
    assert len(names["verdicts"]) >= 10 and "chance 0.0010" in said

"""Scenes against dense algebra, closed forms and the chapters' own functions; frames by pixels."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from book import clips
from mathkit import puppets
from mathkit.draw import scenes, style
from mathkit.draw.scenes import plane, shown
from mathkit.draw.scenes.scene import eased, split

CHEAP = {
    "count": scenes.count,
    "pushed_curve": scenes.pushed_curve,
    "push_and_pull": scenes.push_and_pull,
    "failing_basis": lambda n: scenes.failing_basis(n=n),
    "eigenfaces": lambda n: scenes.eigenfaces(k=8, n=n),
    "pentagon": lambda n: scenes.pentagon(steps=200, n=n),
    "power_method": lambda n: scenes.power_method(rounds=2, n=n),
    "rotate_stretch_rotate": lambda n: scenes.rotate_stretch_rotate(n=n),
}


# What they compute -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "M", [[[1.0, 1.2], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.5]], [[2.0, 0], [0, 0]]]
)
def test_three_acts_end_at_the_matrix(M):
    """numpy's SVD knows the factors; every act is a rotation or a stretch along the axes."""
    scene = scenes.rotate_stretch_rotate(torch.tensor(M), n=60)
    stages, S = scene["stages"], np.linalg.svd(np.array(M), compute_uv=False)
    assert np.allclose(stages[0], np.eye(2)) and np.allclose(stages[-1], M, atol=1e-6)
    assert np.allclose(scene["S"], S, atol=1e-6)
    values = np.linalg.svd(stages, compute_uv=False)
    assert (values[:, 0] <= max(1, S[0]) + 1e-6).all()
    angles = np.einsum("kij,aj,kil,bl->kab", stages, scene["V"], stages, scene["V"])[:, 0, 1]
    assert abs(angles).max() < 1e-6, "the two directions stay at a right angle"
    assert np.allclose([np.linalg.det(scene[name]) for name in "UV"], 1)


@pytest.mark.parametrize("ratio", [0.9, 0.5])
def test_the_power_method_converges_at_its_rate(ratio):
    """The tangent of the angle shrinks by (s_2 / s_1)^2 a round."""
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    scene = scenes.power_method(turn.T @ torch.diag(torch.tensor([1.0, ratio])) @ turn, rounds=5)
    v1 = turn.numpy()[0]
    across = [abs(v[0] * v1[1] - v[1] * v1[0]) / abs(v @ v1) for v in scene["starts"]]
    assert np.allclose(np.array(across[1:]) / across[:-1], ratio**2, rtol=1e-4)
    assert abs(abs(scene["v1"] @ v1) - 1) < 1e-6
    assert np.allclose(scene["arrow"][-1], scene["starts"][-1])


def test_the_pushed_velocity_is_the_derivative_of_the_pushed_curve():
    scene = scenes.pushed_curve(n=401)
    for track, speed in (("curve", "velocity"), ("pushed", "pushforward")):
        rate = np.gradient(scene[track], 1 / 400, axis=0)[1:-1] / (2 * math.pi)
        assert abs(rate - scene[speed][1:-1]).max() < 2e-3


def test_the_ring_is_a_ring():
    points = shown.ring(torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * 6).numpy()
    wide = np.hypot(points[:, 0], points[:, 1]) - shown.BIG
    assert np.allclose(np.hypot(wide, points[:, 2]), shown.SMALL, atol=1e-6)


def test_one_number_by_two_ways():
    """By finite differences of the renderer, a third way."""
    scene = scenes.push_and_pull(n=9)
    q = puppets.sample_factors(16, seed=34, stranger=0)[1:2].double()
    assert np.allclose(scene["forward"], scene["back"], atol=1e-4)
    dials = [puppets.FACTORS.index(name) for name in ("mouth_open", "light")]
    for i in (0, 3, 5):
        v = torch.zeros(1, 13).double()
        v[0, dials[0]], v[0, dials[1]] = math.cos(scene["angle"][i]), math.sin(scene["angle"][i])
        change = (puppets.render(q + 1e-5 * v) - puppets.render(q - 1e-5 * v)) / 2e-5
        window = change[..., 40:52, 20:44].mean() * 40
        assert abs(float(window) - scene["forward"][i]) < 1e-2 * abs(scene["forward"]).max()


def test_eigenfaces_leave_what_numpy_leaves():
    from mathkit.chapters.eigenfaces import load_faces

    scene = scenes.eigenfaces(person=2, k=6, n=9)
    X = load_faces("lfw", 100, size=25).flatten(1).double().numpy()
    Xc = X - X.mean(0)
    axes = np.linalg.svd(Xc, full_matrices=False)[2][:6]
    rest = [((Xc[2] - axes[:j].T @ (axes[:j] @ Xc[2])) ** 2).sum() for j in range(7)]
    assert np.allclose(scene["left"], np.array(rest) / rest[0], atol=1e-3)


def test_coordinates_rebuild_the_point():
    scene = scenes.failing_basis(n=20)
    P, c = scene["P"], scene["coordinates"]
    assert np.allclose(np.einsum("kij,kj->ki", P, c), scene["point"])
    assert np.allclose(np.hypot(P[:, 0], P[:, 1]), 1)
    assert np.allclose(c[0], P[0].T @ scene["point"]), "a square corner: measured"
    assert abs(c[-1]).max() > 5


def test_the_count_is_that_of_the_table():
    scene = scenes.count(n=30)
    assert scene["share"][-1] == scene["ill"].mean() and scene["counted"][-1] == len(scene["ill"])
    assert scene["high"][-1] - scene["low"][-1] < 0.1 * (scene["high"][0] - scene["low"][0])


def test_the_pentagon_learns():
    """What it loses falls under that of the best without superposition: two of five, 3/5 stays."""
    scene = scenes.pentagon(n=9, steps=800)
    nothing = 0.05 / 3  # E x^2 of a feature
    assert scene["loss"][-1] < 0.6 * nothing
    assert (np.hypot(*scene["W"][-1]) > 0.6).sum() >= 4, "more features than neurons"


@pytest.mark.patient
def test_the_ellipse_is_that_of_the_dense_jacobian():
    scene = scenes.ellipse(n=6)
    A = plane.felt(puppets.sample_factors(16, seed=34, stranger=0)[1:2], 500)
    columns = [puppets.FACTORS.index(name) for name in scene["dials"].tolist()]
    J = A.dense()[:, columns].double().numpy()
    assert np.allclose(scene["G"], J.T @ J, rtol=1e-3)
    assert np.allclose(scene["M"].T @ scene["M"] * np.linalg.norm(J, 2) ** 2, J.T @ J, rtol=1e-3)
    s = np.linalg.svd(J, compute_uv=False)
    assert np.allclose(scene["S"], s / s[0], rtol=1e-3)
    assert f"{s[0] / s[1]:.1f} times" in scene.captions[-1]


@pytest.mark.patient
@pytest.mark.slow
def test_the_cure_is_the_course_of_the_treatment_table():
    """`studies` has it as one row of many; here it is written out."""
    import mathkit as mk
    from mathkit.chapters import treatment
    from mathkit.draw.scenes import treated
    from studies import methods, trial

    chosen, p = trial.protocol(), mk.load_model("alice")
    dose = chosen["strengths"][chosen["primary"]][0]
    (row,) = (methods.Row(**r) for r in chosen["rows"] if r["name"] == chosen["primary"])
    scene = scenes.cure(stops=2, fine=1, over=1, n=12)
    case = treatment.admit(p, 1, [chosen["development"][treated.PATIENT]], chosen["t"])
    average = puppets.average_puppet()
    theirs = methods.prescribed(p, case, row, scene["strengths"].tolist(), average)
    ours = scene["treated"].astype(float) / 127.5 - 1
    assert abs(ours - theirs.permute(0, 2, 3, 1).numpy()).max() < 0.02
    assert scene["stranger"][0] > 0.9 and scene["stranger"][-2] < 0.1
    assert scene["strength"][0] == 0 and math.isclose(scene["strength"][-1], 2 * dose)


@pytest.mark.patient
def test_alice_in_few_frames():
    made = [scenes.snow(steps=3, n=5), scenes.two_rulers(n=5), scenes.switched_off((0, 1), n=4)]
    for scene in [*made, scenes.coarse_to_fine(times=(749, 416), n=4)]:
        pages = list(scene.frames((320, 180)))
        assert len(pages) == len(scene) and all(page.shape == (180, 320, 3) for page in pages)


# How they are drawn ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHEAP)
def test_a_scene_is_drawn_frame_by_frame(name):
    scene = CHEAP[name](9)
    pages = list(scene.frames((640, 360)))
    assert len(pages) == len(scene) == 9
    assert all(p.shape == (360, 640, 3) and p.dtype == np.uint8 for p in pages)
    assert any(not np.array_equal(pages[0], page) for page in pages), "something moves"
    again = next(iter(scene.frames((640, 360))))
    assert np.array_equal(again, pages[0])


@pytest.mark.parametrize("name", CHEAP)
def test_grounds(name):
    scene = CHEAP[name](9)
    light, dark = (next(iter(scene.frames((320, 180), dark=d)))[2, 2] for d in (False, True))
    assert light.min() > 230 and dark.max() < 60
    clear = next(iter(scene.frames((320, 180), transparent=True)))
    assert clear.shape[2] == 4 and clear[2, 2, 3] == 0 and clear[..., 3].max() == 255


def test_every_chapter_has_a_scene():
    from book.paths import chapters

    assert [path.stem[:2] for path in chapters()] == [*scenes.BY_CHAPTER]
    assert {f.__name__ for f in scenes.BY_CHAPTER.values()} < set(scenes.__all__)


def lightness(colour):
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [
        0.2126, 0.7152, 0.0722]  # fmt: skip


@pytest.mark.parametrize("colours", [style.LIGHT, style.DARK])
def test_inks_stand_out_from_their_ground(colours):
    for name in ("INK", "GREY", "ACCENT", "BLUE", "GREEN", "PURPLE"):
        a, b = sorted(lightness(colours[c]) for c in (name, "PAPER"))
        assert (b + 0.05) / (a + 0.05) > (7 if name == "INK" else 3), name


def test_lettering_is_legible_at_720p():
    from mathkit.draw.scenes import scene

    assert min(scene.TITLE, scene.TEXT) * 100 / 72 >= 24


# What is kept of them ----------------------------------------------------------------------------


def test_arrays_come_back_from_both_files(tmp_path):
    scene = scenes.rotate_stretch_rotate(n=7)
    saved = np.load(scene.save(tmp_path / "x.npz"))
    told = json.loads(scene.save(tmp_path / "x.json").read_text())
    assert set(saved) == {*scene.arrays, "title", "captions"} == set(told)
    for name, a in scene.arrays.items():
        assert np.array_equal(saved[name], a)
        assert np.allclose(np.array(told[name]), a, rtol=1e-6)
    assert saved["captions"].tolist() == told["captions"] == list(scene.captions)
    with pytest.raises(ValueError, match=r"saved to .npz or .json; got .*x.txt"):
        scene.save(tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: scenes.rotate_stretch_rotate(torch.eye(3)), r"a matrix \(2, 2\), got \(3, 3\)"),
        (lambda: scenes.power_method(torch.eye(3)), r"a matrix \(2, 2\)"),
        (lambda: scenes.ellipse(dials=("smile", "moustache")), "dials are two of curtain_hue"),
        (lambda: scenes.ellipse(dials=("smile", "smile")), "dials are two of"),
        (lambda: scenes.two_rulers(dials=("smile", "moustache")), "dials are two of"),
        (lambda: scenes.power_method(torch.zeros(2, 2)), "got zeros"),
        (lambda: scenes.eigenfaces(person=100), "person is an integer in 0 ... 99, got 100"),
        (lambda: scenes.cure(stops=1), "stops is an integer >= 2, got 1"),
        (lambda: scenes.rotate_stretch_rotate(n=2), "n is an integer >= 5, got 2"),
        (lambda: next(scenes.count(n=3).frames((1, 9))), "width is an integer >= 16"),
    ],
)
def test_bad_input_gets_a_sentence(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_clocks():
    assert [*eased(3)] == [0, 0.5, 1] and (np.diff(eased(50)) > 0).all()
    for n in (5, 17, 240):
        parts = split(n, 1, 3, 1, 2, 2)
        assert sum(parts) == n and min(parts) >= 1


def test_a_clip_has_a_poster_and_its_arrays(tmp_path):
    scene = scenes.failing_basis(n=9)
    path = clips.clip(scene, tmp_path / "x.mp4", size=(320, 180))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["x.mp4", "x.npz", "x.png"]
    assert path.stat().st_size < clips.MOST
    assert (tmp_path / "x.png").stat().st_size <= clips.POSTER
    with Image.open(tmp_path / "x.png") as still:
        assert still.size == (320, 180)


@pytest.mark.long
def test_a_poster_of_noise_is_small_too():
    noise = np.random.default_rng(0).integers(0, 256, (720, 1280, 3)).astype(np.uint8)
    assert len(clips.poster(noise)) <= clips.POSTER


def test_the_clips_of_the_repository_are_small_films():
    for name in clips.NAMES.values():
        path = clips.KEPT / f"{name}.mp4"
        assert path.stat().st_size <= clips.MOST
        assert path.with_suffix(".png").stat().st_size <= clips.POSTER
        data = path.read_bytes()
        assert data.index(b"moov") < data.index(b"mdat")


def test_the_examples_import_nothing_of_ours(tmp_path):
    import runpy

    from book.paths import ROOT

    for path in (ROOT / "examples").glob("*.py"):
        text = path.read_text()
        assert "import mathkit" not in text and "from mathkit" not in text
        compile(text, path.name, "exec")
    source = scenes.pentagon(n=9, steps=200).save(tmp_path / "x.npz")
    runpy.run_path(str(ROOT / "examples/matplotlib_pentagon.py"))["film"](
        source, tmp_path / "x.gif"
    )
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == 3


def test_a_scene_says_what_it_has():
    scene = scenes.rotate_stretch_rotate(n=12)
    assert "stages (12, 2, 2)" in repr(scene) and len(repr(scene)) < 300
    with pytest.raises(KeyError, match=r"is no array of this scene: it has .*stages.*frames\(\)"):
        scene["w"]
    for size in (1080, "1080p", (1280,), (1280, 7.5)):
        with pytest.raises(ValueError, match=r"size is \(width, height\)|height is an integer"):
            next(scene.frames(size))


def test_the_pentagon_moves_in_every_frame_of_the_learning():
    W = scenes.pentagon(n=90, steps=200)["W"]
    moved = abs(np.diff(W, axis=0)).max((1, 2))[11:69]
    assert (moved > 0).all()

"""A photograph edited from file to file: what must stay, what is kept, and what is refused."""

import json
import re
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import UNTRAINED
from PIL import Image
from torch import Tensor

import mathkit as mk
from mathkit.__main__ import main as command
from mathkit.__main__ import run
from mathkit.tools import edit, subject
from mathkit.tools.edit import Photo
from mathkit.tools.subject import Settings

pytestmark = [pytest.mark.long, UNTRAINED, pytest.mark.usefixtures("figures_closed")]
SIZE, BOX = (50, 36), (7, 0, 43, 36)  # a photograph and the square that a model sees of it


@pytest.fixture(scope="module")
def me(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("photo") / "me.png"
    noise = np.random.default_rng(0).integers(60, 190, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(place)
    return place


def settings(tiny: Path, me: Path, **more: Any) -> Settings:
    given = {"model": str(tiny), "image": str(me), "times": (500,), "k": 3, "steps": 4}
    return Settings(**(given | more))


@pytest.fixture(scope="module")
def photo(tiny: Path, me: Path, tmp_path_factory: pytest.TempPathFactory) -> Photo:
    return Photo(settings(tiny, me), tmp_path_factory.mktemp("edit"))


def pixels(image: Any) -> np.ndarray:
    """Of an image, or of a picture file."""
    if isinstance(image, str | Path):
        with Image.open(image) as file:
            return pixels(file)
    return np.array(image).astype(int)


def flat(V: Tensor) -> Tensor:
    return V.flatten(1).double()


def test_no_step_leaves_the_photograph_as_it_is(photo: Photo, me: Path) -> None:
    same = photo.edited(1, 0.0)
    assert same.size == SIZE
    assert np.array_equal(pixels(same), pixels(me))


def test_a_step_changes_what_the_model_sees_and_nothing_beside_it(photo: Photo, me: Path) -> None:
    change = np.abs(pixels(photo.edited(1, 0.4)) - pixels(me)).max(2)
    left, top, right, bottom = BOX
    seen = np.zeros_like(change, dtype=bool)
    seen[top:bottom, left:right] = True
    assert change[~seen].max() == 0 and change[seen].max() > 0


def test_no_ghost_of_what_has_gone_stays(photo: Photo, monkeypatch: Any) -> None:
    """Where all changes the photograph's pixels are gone; where little does they are there."""
    moved = torch.zeros_like(photo.back)
    moved[..., 8:], moved[..., :6] = 1, 0.01
    monkeypatch.setattr(photo, "back", torch.zeros_like(moved))
    monkeypatch.setattr(photo, "images", lambda *_: moved)
    left, top, right, bottom = BOX
    whole = pixels(photo.edited(1, 0.1))[top:bottom, left:right]
    before = pixels(photo.study.settings.image)[top:bottom, left:right]
    half = (right - left) * 10 // 16
    assert (whole[:, half:] == 255).all()
    assert np.abs(whole[:, : half // 2] - before[:, : half // 2]).max() <= 3


def test_an_edit_is_the_move_and_the_way_down_by_hand(photo: Photo) -> None:
    moved = mk.move(photo.study.p, photo.x, photo.t, photo.V[1], 0.2, 1)[-1]
    steps = photo.study.steps(photo.t)
    by_hand = mk.denoise(photo.study.p, moved, photo.t, steps).clamp(-1, 1)
    assert torch.allclose(photo.images(2, [0.2]), by_hand, atol=1e-5)


def test_the_directions_are_the_encoders_at_the_picture(photo: Photo) -> None:
    J = mk.jacobian(mk.encoder(photo.study.p, photo.t), photo.x).dense().double()
    S = torch.linalg.svdvals(J)[:3]
    assert torch.allclose(photo.S.double(), S, rtol=1e-2)
    stretched = (J @ flat(photo.V).T).norm(dim=0)
    assert torch.allclose(stretched, S, rtol=1e-2)


def test_with_a_region_no_direction_holds_what_the_rest_feels_most(
    tiny: Path, me: Path, tmp_path: Path
) -> None:
    photo = Photo(settings(tiny, me, region=(0.0, 0.0, 0.5, 1.0)), tmp_path, inside=True)
    J = mk.jacobian(mk.posterior_mean(photo.study.p, photo.t), photo.x).dense().double()
    rest = (1 - photo.study.region).flatten().double()
    N = torch.linalg.svd(rest[:, None] * J).Vh[:3]
    assert (flat(photo.V) @ N.T).abs().max() < 0.05
    assert torch.allclose(flat(photo.V).norm(dim=1), torch.ones(3).double(), atol=1e-5)


def test_what_was_found_is_kept(photo: Photo, tiny: Path, me: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Photo, "_found", None)
    again = Photo(settings(tiny, me), photo.folder)
    assert torch.equal(again.V, photo.V) and torch.equal(again.x, photo.x)


def test_a_folder_is_of_one_picture(photo: Photo, tiny: Path, me: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.fromarray(pixels(me).astype(np.uint8)[::-1]).save(other)
    with pytest.raises(ValueError, match="begun with other settings"):
        Photo(settings(tiny, other), photo.folder)


@pytest.mark.parametrize("size", [(40, 40), (41, 30), (7, 90)])
def test_the_box_is_central_and_as_large_as_can_be(size: tuple[int, int]) -> None:
    left, top, right, bottom = edit._central(size, (16, 16))
    assert right - left == bottom - top == min(size)
    assert abs(left - (size[0] - right)) <= 1 and abs(top - (size[1] - bottom)) <= 1


def test_a_picture_turned_by_its_camera_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert subject.opened(tmp_path / "a.jpg", 3).size == (20, 30)


def test_a_grey_model_makes_grey_pictures() -> None:
    assert edit._picture(torch.zeros(1, 1, 4, 4)).mode == "L"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: p.edited(4, 0.1), "direction is an integer in 0 ... 3, got 4"),
        (lambda p: p.edited(1, 3.0), "strength"),
        (lambda p: Photo(Settings(), p.folder), "give image, a file"),
        (
            lambda p: Photo(Settings(image="a.png", times=(500, 300)), p.folder),
            r"an edit is at one time, got \(500, 300\)",
        ),
    ],
)
def test_what_cannot_be_edited_is_refused(photo: Photo, call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(photo)


# The files that people have ----------------------------------------------------------------------


def spoilt(kind: str, place: Path) -> Path:
    """A file that is no whole picture."""
    file = place / f"{kind}.jpg"
    if kind == "folder":
        file.mkdir()
    elif kind != "missing":
        Image.effect_noise((64, 64), 60).save(file)
        whole = file.read_bytes()
        file.write_bytes({"empty": b"", "text": b"a letter", "cut": whole[: len(whole) // 2]}[kind])
    return file


SPOILT = {
    "missing": "there is no picture .*missing.jpg: give image",
    "folder": "folder.jpg is a folder: give image, one picture file",
    "empty": "empty.jpg is no picture that Pillow can read",
    "text": "text.jpg is no picture that Pillow can read",
    "cut": "cut.jpg is no picture that Pillow can read .*truncated",
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_file_that_is_no_picture_is_said_before_a_model_is_loaded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(subject, "load_model", None)
    file = spoilt(kind, tmp_path)
    for name in ("edit", "report"):
        assert command([name, "--out", str(tmp_path / "out"), "--image", str(file)]) == 1
        said = capsys.readouterr().err
        assert re.search(f"{name}: .*{SPOILT[kind]}", said) and "Errno" not in said
    assert not (tmp_path / "out").exists()


def whole(kind: str, place: Path) -> tuple[Path, np.ndarray]:
    """A picture file of an uncommon kind, and its pixels in 8 bits and three colours."""
    ramp = np.tile(np.arange(40, dtype=np.uint8) * 6, (30, 1))
    colours = np.stack([ramp, ramp[:, ::-1], ramp // 2], 2)
    grey = np.stack([ramp] * 3, 2)
    if kind == "cmyk.jpg":
        Image.fromarray(colours).convert("CMYK").save(place / kind, quality=100, subsampling=0)
        return place / kind, colours
    if kind == "grey16.png":
        Image.fromarray(ramp.astype(np.uint16) * 257).save(place / kind)
        return place / kind, grey
    if kind == "palette.png":  # black on the left, nothing on the right
        dots = Image.new("P", (40, 30), 0)
        dots.putpalette([0, 0, 0, 255, 0, 0])
        dots.paste(1, (20, 0, 40, 30))
        dots.save(place / kind, transparency=1)
        return place / kind, np.where(np.arange(40)[None, :, None] < 20, 0, 255) + 0 * grey
    if kind == "moving.gif":  # the first picture of several
        first, then = Image.new("RGB", (40, 30), (0, 255, 0)), Image.new("RGB", (40, 30), "red")
        first.save(place / kind, save_all=True, append_images=[then])
        return place / kind, np.array(first)
    alpha = np.stack([ramp, np.full_like(ramp, 255)], 2)
    Image.fromarray(alpha).save(place / kind)
    return place / kind, grey


@pytest.mark.parametrize(
    "kind", ["cmyk.jpg", "grey16.png", "palette.png", "moving.gif", "alpha.png"]
)
def test_an_uncommon_kind_of_picture_is_edited_too(
    kind: str, photo: Photo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its square is what the model sees, and unmoved it is as it was."""
    file, wanted = whole(kind, tmp_path)
    seen = subject.read_image(file, photo.study.p)
    square = torch.from_numpy(wanted[:, 5:35] / 127.5 - 1).permute(2, 0, 1)[None].float()
    small = torch.nn.functional.interpolate(square, (16, 16), mode="area")
    assert seen.shape == (1, 3, 16, 16) and (seen.cpu() - small).abs().mean() < 0.06
    monkeypatch.setattr(photo.study, "settings", settings(Path(), file))
    same = photo.edited(1, 0.0)
    assert same.size == (40, 30) and same.mode == "RGB"
    assert np.abs(pixels(same) - wanted).max() <= (25 if kind.endswith("jpg") else 1)


# What is shown and said --------------------------------------------------------------------------


def test_the_sheet_begins_with_the_photograph_and_it_unmoved(photo: Photo) -> None:
    ax = photo.sheet()
    labels = [text.get_text() for text in ax.texts]
    first = ["the photograph", "unmoved", "random: -0.1", "random: +0.1"]
    rest = [f"{i}: {s}" for i in (1, 2, 3) for s in ("-0.1", "-0.05", "+0.05", "+0.1")]
    assert labels == first + rest
    shown = [np.asarray(image.get_array()) for image in ax.images]
    for image, wanted in ((shown[0], photo.study.picture), (shown[1], photo.back)):
        wanted = ((wanted[0].permute(1, 2, 0).cpu() + 1) / 2).clamp(0, 1).numpy()
        image = image / 255 if image.dtype == np.uint8 else image
        assert np.abs(image[..., :3] - wanted).max() < 0.01
    heights = {round(image.get_extent()[3], 6) for image in ax.images[:4]}
    assert len(heights) == 1 and len({image.get_extent()[0] for image in ax.images}) == 4


@pytest.mark.parametrize(("off", "more"), [(0.02, False), (0.2, True)])
def test_how_near_the_picture_comes_back_is_a_sentence(
    off: float, more: bool, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture: Any = photo.study.picture
    monkeypatch.setattr(photo, "back", picture.cpu() + 2 * off)
    said = f"comes back from t = {photo.t} with a mean error of {off:.1%} of the way from black to"
    assert f"Unmoved, the picture {said} white: 0 is perfect, below 5% good" in photo.told
    assert ("smaller --times or more --steps" in photo.told) == more


def test_the_help_says_what_is_needed_and_what_a_region_is_of(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        command(["edit", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "the first command needs it", "left,top,right,bottom as shares from 0 to 1 of what the "
        "model sees, which of a photograph is its central square (default all of it)",
        "the one time of the edit",
    ):  # fmt: skip
        assert words in said
    assert "default none" not in said and "900,700" not in said


def test_a_warning_is_shown_once_whatever_its_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module: Any = types.ModuleType("warning_often")

    def often(words: list[str]) -> None:
        for size in (3.5, -2e-3, 41):
            warnings.warn(f"it reaches {size:.3g}", stacklevel=1)
        warnings.warn("another", stacklevel=1)

    module.main = often
    monkeypatch.setitem(sys.modules, "warning_often", module)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert run("mathkit", {"often": ("", "warning_often")}, ["often"]) == 0
        assert [str(w.message) for w in told] == ["it reaches 3.5", "another"]
        often([])
    assert len(told) == 6, "elsewhere each is shown"


def test_the_two_commands(tiny: Path, me: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "mine"
    given = ["--model", str(tiny), "--image", str(me), "--times", "500", "--k", "2", "--steps", "4"]
    assert command(["edit", "--out", str(out), *given]) == 0
    told = capsys.readouterr().out
    assert f"--out {out} --direction N" in told
    assert pixels(out / "directions.png").shape[1] > 500
    assert command(["edit", "--out", str(out), "--direction", "2", "--strength", "0.3"]) == 0
    made = capsys.readouterr().out.split()
    assert [Path(name).name for name in made] == [
        "direction-2+0.3.png", "direction-2+0.3-strip.png"
    ]  # fmt: skip
    assert pixels(made[0]).shape == (*SIZE[::-1], 3)
    assert json.loads((out / "edit.json").read_text())["strength"] == 0.1
    assert command(["edit", "--out", str(out), "--direction", "3"]) == 1
    assert "direction" in capsys.readouterr().err

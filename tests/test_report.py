"""The experiments on any model, and the page made of them."""

import dataclasses
import html
import math
import re
import shlex
from pathlib import Path
from typing import Any

import galaxy_files
import matplotlib.pyplot as plt
import numpy as np
import pytest
import standins
import torch
from conftest import UNTRAINED
from PIL import Image
from torch import Tensor

import mathkit as mk
from mathkit.__main__ import main as command
from mathkit.diffusion import galaxies
from mathkit.draw.table import Table
from mathkit.tools import atlas, experiments, report, subject, timing
from mathkit.tools.subject import Settings, Study

pytestmark = [pytest.mark.long, UNTRAINED, pytest.mark.usefixtures("figures_closed")]
SMALL: dict[str, Any] = {"samples": 3, "times": (999, 500), "k": 3, "steps": 5, "strength": 0.2}


@pytest.fixture(scope="module")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(Settings(str(tiny), **SMALL), tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished report that no test changes."""
    folder = tmp_path_factory.mktemp("report")
    report.make(Settings(str(tiny), **SMALL), folder)
    return folder


def tables(pieces: Any) -> list[Table]:
    return [piece for piece in pieces if isinstance(piece, Table)]


# The study ---------------------------------------------------------------------------------------


def test_bases_are_the_svd_at_the_states_of_mk_sample(small: Study) -> None:
    p, seen = small.p, {}
    mk.sample(p, index=[2], seed=0, steps=5, callback=lambda _, t, x: seen.update({t: x}))
    torch.testing.assert_close(small.state(2, 500), seen[500])
    dense = mk.jacobian(mk.encoder(p, 500), seen[500]).dense()
    S = torch.linalg.svdvals(dense.double())[:3]
    torch.testing.assert_close(small.bases("h")[2, 500].S.double(), S, rtol=1e-4, atol=0)
    assert small.basis("h", 500) is small.bases("h")[0, 500]


def test_without_a_folder_the_bases_are_the_same(tiny: Path, small: Study) -> None:
    bare = Study(Settings(str(tiny), **SMALL))
    for item, r in bare.bases("h").items():
        torch.testing.assert_close(r.S, small.bases("h")[item].S)


def test_times_are_moved_to_the_grid_and_fall(tiny: Path, tmp_path: Path) -> None:
    found = Study(Settings(str(tiny), **SMALL | {"times": (480, 990, 520)}), tmp_path)
    assert found.times == [999, 500] and found.middle == 500


def test_a_picture_takes_the_place_of_sample_0(tiny: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "red.png")
    s = Settings(str(tiny), image=str(tmp_path / "red.png"), **SMALL)
    found = Study(s, tmp_path / "study")
    wanted = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    assert found.picture is not None and torch.equal(found.picture, wanted)
    steps = found.steps(500)
    assert steps == 3
    inverted = mk.invert(found.p, wanted, 500, steps, refine=1)
    torch.testing.assert_close(found.subject(500), inverted)
    _, S, _ = mk.svd(mk.jacobian(mk.posterior_mean(found.p, 500), inverted), 3)
    torch.testing.assert_close(found.basis("mean", 500).S, S, rtol=1e-3, atol=0)
    error = tables(experiments.unedited(found))[0].lines
    back = mk.denoise(found.p, inverted, 500, steps).clamp(-1, 1)
    assert error[1][1] == pytest.approx(float((back - wanted).abs().mean()), rel=1e-4)


def test_a_picture_is_turned_cut_and_scaled(tmp_path: Path, small: Study) -> None:
    """Black, red and blue thirds; stored lying on their side, with a note to turn them."""
    image = Image.new("RGB", (48, 16))
    image.paste((255, 0, 0), (16, 0, 32, 16))
    image.paste((0, 0, 255), (32, 0, 48, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it
    image.rotate(90, expand=True).save(tmp_path / "side.png", exif=exif)
    found = subject.read_image(tmp_path / "side.png", small.p)
    assert found.shape == (1, 3, 16, 16) and found.dtype == torch.float32
    assert torch.equal(found[0, :, 8, 8], torch.tensor([1.0, -1.0, -1.0]))


def ramp(small: Study, image: Any, path: Path) -> torch.Tensor:
    """What is read of a picture, at the middle of its height, (C, 16)."""
    image.save(path)
    return subject.read_image(path, small.p)[0, :, 8]


def test_a_picture_of_any_depth_is_the_same(tmp_path: Path, small: Study) -> None:
    """A ramp from black to white in 8 bits, 16 bits, float32 in [0, 1] and [0, 255]."""
    line = np.tile(np.linspace(0, 1, 16), (16, 1))
    eight = ramp(small, Image.fromarray((line * 255).round().astype("uint8")), tmp_path / "8.png")
    assert eight[0, 0] == -1 and eight[0, -1] == 1 and abs(float(eight.mean())) < 0.01
    others = {
        "16.png": (line * 65535).round().astype("uint16"),
        "16.tif": (line * 65535).round().astype("uint16"),
        "1.tif": line.astype("float32"), "255.tif": (line * 255).astype("float32"),
    }  # fmt: skip
    for name, values in others.items():
        found = ramp(small, Image.fromarray(values), tmp_path / name)
        torch.testing.assert_close(found, eight, rtol=0, atol=1 / 127)
    with pytest.raises(ValueError, match=r"far\.tif holds numbers from -3 to 900: bring them to"):
        values = np.full((16, 16), 900, dtype="float32")
        values[0, 0] = -3
        ramp(small, Image.fromarray(values), tmp_path / "far.tif")


def test_what_is_transparent_lies_on_white(tmp_path: Path, small: Study) -> None:
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (8, 0, 16, 16))
    found = ramp(small, image, tmp_path / "alpha.png")
    assert torch.equal(found[:, 1], torch.tensor([1.0, -1.0, -1.0])) and bool(
        (found[:, -1] == 1).all()
    )
    palette = image.convert("P")
    palette.info["transparency"] = palette.getpixel((12, 8))
    assert bool((ramp(small, palette, tmp_path / "p.png")[:, -1] == 1).all())


def test_what_is_no_picture_is_named(tmp_path: Path, small: Study) -> None:
    (tmp_path / "words.png").write_text("words")
    with pytest.raises(ValueError, match=r"words\.png is no picture that Pillow can read"):
        subject.read_image(tmp_path / "words.png", small.p)
    with pytest.raises(FileNotFoundError):
        subject.read_image(tmp_path / "missing.png", small.p)
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    with pytest.raises(ValueError, match=r"cut\.png is no picture"):
        subject.read_image(tmp_path / "cut.png", small.p)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"samples": 1}, "samples >= 2"),
        ({"times": ()}, "at least one time"),
        ({"guidance": 2.0}, "guidance and negative go with a prompt"),
        ({"region": (0.5, 0, 0.2, 1)}, "region is left, top, right, bottom"),
        ({"strength": 0.0}, r"strength is in \(0, 2\]"),
        ({"dtype": "int8"}, "dtype is one of float32"),
        ({"region": (0.5, 0, 0.51, 1)}, "hold some of the 16 x 16 places"),
        ({"region": (0, 0, 1, 1)}, "and not all"),
    ],
)
def test_bad_settings_say_what_is_expected(tiny: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Study(Settings(str(tiny), **change))


def test_the_region_is_a_box_of_x(small: Study) -> None:
    assert float(small.region.sum()) == 3 * 8 * 8
    assert torch.equal(small.region[0, 4:12, 4:12], torch.ones(8, 8))


# The experiments ---------------------------------------------------------------------------------


def test_every_experiment_shows_something_and_says_what(small: Study) -> None:
    for part in experiments.PARTS.values():
        assert part.__doc__ and list(part(small))
        plt.close("all")


def test_a_text_model_has_all_of_them_too(tmp_path: Path) -> None:
    standins.stable_diffusion(tmp_path / "model", "v_prediction")
    Image.new("RGB", (30, 30), (200, 100, 0)).save(tmp_path / "plain.png")
    few: dict[str, Any] = SMALL | {"times": (500,), "k": 1, "samples": 2, "steps": 3}
    found = Study(Settings(str(tmp_path / "model"), image=str(tmp_path / "plain.png"), **few))
    for part in experiments.PARTS.values():
        assert list(part(found))
        plt.close("all")


def test_h_of_another_layer_has_all_of_them_too(tiny: Path) -> None:
    few: dict[str, Any] = SMALL | {"times": (500,), "k": 1, "samples": 2, "steps": 3}
    found = Study(Settings(str(tiny), at="up_blocks.0", **few))
    J = mk.jacobian(mk.encoder(found.p, found.middle, at="up_blocks.0"), found.state(0, 500))
    expected = torch.linalg.svdvals(J.dense().double())[:1]
    torch.testing.assert_close(found.basis("h", 500).S.double(), expected, rtol=1e-3, atol=0)
    said = [piece for piece in experiments.directions(found) if isinstance(piece, str)]
    assert said == ["h is the output of the layer up_blocks.0 of UNet2DModel."]
    for part in experiments.PARTS.values():
        assert list(part(found))
        plt.close("all")
    with pytest.raises(ValueError, match="is a layer of p.unet, got 'nowhere'"):
        Study(Settings(str(tiny), at="nowhere", **few))


def test_galaxies_have_all_of_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network without a bottleneck, with one channel, and images that are not x_0."""
    file = galaxies.FILES["galaxies"][0]
    galaxy_files.installed(monkeypatch, tmp_path, {file: galaxy_files.arrays()})
    Image.new("L", (30, 30), 100).save(tmp_path / "plain.png")
    few: dict[str, Any] = SMALL | {"times": (500,), "k": 1, "samples": 2, "steps": 3}
    found = Study(Settings("galaxies", image=str(tmp_path / "plain.png"), **few))
    for part in experiments.PARTS.values():
        assert list(part(found))
        plt.close("all")
    said = [piece for piece in experiments.directions(found) if isinstance(piece, str)]
    assert said == ["h is the output of the layer blocks.1 of Mixer."]
    plt.close("all")


def test_shares_and_ranks_agree_with_the_dense_jacobian(small: Study) -> None:
    (table,) = tables(experiments.directions(small))
    for label, t, first, share, rank, _ in table.lines:
        name = next(name for name, words in experiments.NAMES.items() if words == label)
        S = torch.linalg.svdvals(mk.jacobian(small.map(name, t), small.subject(t)).dense()).double()
        assert first == pytest.approx(float(S[0]), rel=1e-4)
        assert share == pytest.approx(float(S[:3].square().sum() / S.square().sum()), rel=0.25)
        half = int((S.square().cumsum(0) < 0.5 * S.square().sum()).sum()) + 1
        assert rank == (half if half <= 3 else "> 3") or abs(half - 3) <= 1


def test_every_edit_of_x_has_the_length_that_was_asked(small: Study) -> None:
    (table,) = tables(experiments.edits(small))
    reached = {(name, asked): got for name, asked, got, _ in table.lines}
    for way in ("plain", "random", "guided", "shooting", "boosted"):
        for s in (-0.2, 0.2):
            assert reached[way, s] == pytest.approx(0.2, rel=1e-3), way
    assert reached["injected", 1.0] == 0 and reached["normalised", 0.2] > 0
    changes = {name: change for name, asked, _, change in table.lines if asked > 0}
    assert all(change > 0 for change in changes.values())


def test_no_direction_moves_the_region_more_than_the_masked_one(small: Study) -> None:
    (table,) = tables(experiments.region(small))
    inside = {line[0].partition(",")[0]: line[1] for line in table.lines}
    assert inside["masked"] == max(inside.values())
    assert [line[0] for line in table.lines][::3] == ["no mask", "random"]
    (_, _, masked_rest, _), (name, _, rest, _) = table.lines[1:3]
    assert name == "masked, projected off 3" and rest < masked_rest


def test_chance_is_near_right_angles_in_many_dimensions() -> None:
    k, n = 3, 4000
    expected = math.sqrt(k) * math.pi / 2
    assert expected * 0.95 < experiments.chance_distance(n, k) < expected
    assert experiments.chance_distance(3, 3) == pytest.approx(0, abs=1e-5)


def test_a_direction_is_kept_whole_where_spans_are_equal(
    small: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = {item: small.bases("h")[0, item[1]] for item in small.bases("h")}
    monkeypatch.setitem(small.found, ("bases", "h"), same)
    (table,) = tables(experiments.shared(small))
    assert all(line[2] == pytest.approx(1, abs=1e-3) for line in table.lines)


def test_the_clock_tells_the_map_from_the_rest(small: Study) -> None:
    import time

    def slow(rows: Tensor) -> Tensor:
        time.sleep(0.02)
        return rows

    A = timing.Timed(mk.linear.linear_map.LinearMap(slow, slow, (4,), (4,)), small.p)
    _, seconds, peak = timing.measured(small.p, lambda: (A.push(torch.ones(1, 4)), slow(A)))
    assert 0.02 <= A.seconds < seconds - 0.019 and peak > 0.05


def test_texts_are_compared(tmp_path: Path) -> None:
    standins.stable_diffusion(tmp_path / "model")
    s = Settings(str(tmp_path / "model"), prompt="a man", other="smiling", **SMALL)
    found = Study(s, tmp_path / "study")
    text, table = experiments.prompts(found)
    assert text == "prompt 'a man', other 'smiling'"
    assert isinstance(table, Table)
    gaps = []
    for i in range(3):
        spans = []
        for words in ("a man", "smiling"):
            p, seen = found.p.prompted(words), {}
            mk.sample(p, index=[i], steps=5, callback=lambda _, t, x: seen.update({t: x}))  # noqa: B023
            spans.append(mk.svd(mk.jacobian(mk.encoder(p, 500), seen[500]), 3, 1e-4).V)
        gaps.append(float(mk.linear.subspaces.distance(*spans)))
    line = next(line for line in table.lines if line[0] == 500)
    assert line[1] == pytest.approx(sum(gaps) / 3, abs=0.05)
    assert list(experiments.directions(found))[-1] == (
        "x_t has 4 channels: the directions are shown as their mean."
    )
    images = found.finish(found.subject(500), 500)
    assert images.shape[1:] == found.p.image_shape


def test_a_model_without_text_says_so(small: Study) -> None:
    assert list(experiments.prompts(small)) == ["This model takes no text."]


# The page ----------------------------------------------------------------------------------------


def test_the_page_needs_nothing_but_itself(made: Path) -> None:
    page = (made / report.PAGE).read_text("utf-8")
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,)', page) == []
    assert "http" not in page and page.count("<h2>") == len(experiments.PARTS) + 1
    for name in experiments.PARTS:
        assert f"<h2>{name}</h2>" in page
    assert all(re.findall(r'<img alt="([^"]*)"', page))
    assert page.count("<table>") > 1 and "&lt;table" not in page


@pytest.mark.slow
def test_its_command_repeats_it(made: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = html.unescape((made / report.PAGE).read_text("utf-8"))
    words = shlex.split(page.partition("<pre>")[2].partition("</pre>")[0])
    seen: list[Settings] = []
    monkeypatch.setattr(report, "make", lambda s, out: seen.append(s))
    report.main(words[4:])
    assert words[:4] == ["python", "-m", "mathkit", "report"]
    assert seen == [Settings(str(tiny), **SMALL)]


def test_what_is_finished_is_not_done_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def part(name: str) -> Any:
        def work(s: Study) -> Any:
            """A part."""
            if name == "c" and done.count("c") == 0:
                done.append("c")
                raise KeyboardInterrupt
            done.append(name)
            yield f"<{name}>"

        return work

    monkeypatch.setattr(report, "PARTS", {name: part(name) for name in "abc"})
    with pytest.raises(KeyboardInterrupt):
        report.make(Settings(str(tiny), **SMALL), tmp_path)
    assert done == ["a", "b", "c"] and not (tmp_path / report.PAGE).exists()
    page = report.make(Settings(str(tiny), **SMALL), tmp_path).read_text("utf-8")
    assert done == ["a", "b", "c", "c"] and "<p>&lt;a&gt;</p>" in page


def test_a_part_that_fails_is_named_and_the_others_are_kept(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [True]

    def fails(s: Study) -> Any:
        yield "first"
        if broken[0]:
            raise torch.OutOfMemoryError("no room")
        yield "second"

    monkeypatch.setattr(report, "PARTS", {"Fails": fails, "Works": lambda s: iter(["fine"])})
    with pytest.raises(ValueError, match="lacks 1 of 2 parts. Fails: no room"):
        report.make(Settings(str(tiny), **SMALL), tmp_path)
    page = (tmp_path / report.PAGE).read_text("utf-8")
    assert all(f"<p>{words}</p>" in page for words in ("first", "Failed: no room", "fine"))
    broken[0] = False
    page = report.make(Settings(str(tiny), **SMALL), tmp_path).read_text("utf-8")
    assert "<p>second</p>" in page and "Failed" not in page


def test_other_settings_are_refused_by_name(made: Path, tiny: Path) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match="begun with other settings: k 3, now 2"):
        report.make(Settings(str(tiny), **SMALL | {"k": 2}), made)
    assert all((made / name).read_bytes() == content for name, content in before.items())


def test_a_model_that_is_not_there_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["report", "--out", str(tmp_path / "new"), "--model", "nobody"]) == 1
    assert "report: no model 'nobody'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_half_precision_meets_the_bound_in_float32(tiny: Path, tmp_path: Path) -> None:
    """bfloat16 in the network, float32 in the solver: the residual is that of the rounded map."""
    s = Settings(str(tiny), **SMALL | {"dtype": "bfloat16", "tol": 0.03})
    found = Study(s, tmp_path)
    r = found.basis("h", 500)
    assert r.V.dtype == torch.float32 and float(r.residuals.max()) <= 0.03 * float(r.S[0])
    exact = Study(dataclasses.replace(s, dtype="float32"), tmp_path / "exact").basis("h", 500)
    torch.testing.assert_close(r.S, exact.S, rtol=0.1, atol=0)
    assert atlas.load_atlas(tmp_path / "atlas-h").settings["precision"] == "bfloat16"


# Models and paths as people have them ------------------------------------------------------------


def test_a_model_s_folder_is_one_by_each_of_its_paths(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["--samples", "0:2", "--times", "500", "--k", "2", "--steps", "3"]
    out = ["--out", str(tmp_path / "atlas")]
    monkeypatch.chdir(tiny.parent)
    for name in (tiny.name, f"./{tiny.name}", str(tiny)):
        assert command(["atlas", *out, "--model", name, *few]) == 0
    begun = {"model": tiny.name, "image": None, "k": 3}
    report.begin(tmp_path / "r.json", begun)
    report.begin(tmp_path / "r.json", begun | {"model": str(tiny)})
    for other in ({"model": str(tmp_path)}, {"image": "a.png"}, {"k": 4}):
        with pytest.raises(ValueError, match="begun with other settings"):
            report.begin(tmp_path / "r.json", begun | other)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_model_of_other_channels_is_said_at_once(
    channels: int, tmp_path: Path, capsys: Any
) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    changes = {"in_channels": channels, "out_channels": channels}
    unet = UNet2DModel.from_config(standins.SMALL | changes)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "p")
    Image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "red.png")
    given = ["--model", str(tmp_path / "p"), "--times", "500", "--k", "2", "--steps", "3"]
    picture = ["--image", str(tmp_path / "red.png")]
    if channels == 1:
        assert command(["edit", "--out", str(tmp_path / "edit"), *picture, *given]) == 0
        return
    for words in (["edit", *picture], ["report"], ["report", *picture]):
        assert command([words[0], "--out", str(tmp_path / "out"), *words[1:], *given]) == 1
        said = capsys.readouterr().err
        assert "1 or 3 channels, and the model's pictures are (2, 16, 16)" in said
        assert not (tmp_path / "out").exists()
    atlas_of = ["atlas", "--out", str(tmp_path / "atlas"), "--samples", "0:2"]
    assert command([*atlas_of, *given]) == 0, "as it says"

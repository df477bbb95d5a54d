"""The tape's look and the film files: measured by spectra, and by decoding what was written."""

import builtins
import itertools
import re

import numpy as np
import pytest
import torch
from PIL import Image

from book import clips
from mathkit.draw import film, scenes, tape

av = pytest.importorskip("av")

QUIET = {"noise": 0.0, "jitter": 0.0, "roll": 0.0, "dropouts": 0.0, "scan": 0, "counter": ""}


def page(height=96, width=128):
    """A picture with edges in brightness and colour."""
    row, column = np.mgrid[:height, :width]
    red = np.where(column > width // 3, 210, 40)
    return np.stack([red, 255 * row // height, np.full_like(row, 90)], -1).astype(np.uint8)


def moving(n, height=96, width=128):
    for i in range(n):
        frame = page(height, width)
        frame[20:40, 4 * i : 4 * i + 20] = (0, 114, 178)
        yield frame


# The tape -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(96, 128), (90, 121), (720, 64), (2, 2), (1, 9)])
def test_a_tape_keeps_shape_type_and_range(shape):
    frame = page(*shape)
    before = frame.copy()
    worn = tape.VHS(seed=3)(frame, 7)
    assert worn.shape == frame.shape and worn.dtype == np.uint8
    assert np.array_equal(frame, before), "the frame that was given is not changed"
    for dtype in (torch.float32, torch.float64):
        x = torch.from_numpy(frame).permute(2, 0, 1).to(dtype) / 127.5 - 1
        y = tape.VHS(seed=3)(x, 7)
        assert y.shape == x.shape and y.dtype == dtype and float(y.abs().max()) <= 1
        assert torch.equal(((y + 1) * 127.5).round().byte().permute(1, 2, 0), torch.tensor(worn))


def test_a_frame_depends_on_the_seed_and_its_number_alone():
    look, frame = tape.VHS(seed=1), page()
    first = look(frame, 4)
    look(page(48, 64), 5)
    assert np.array_equal(look(frame, 4), first)
    assert not np.array_equal(look(frame, 5), first)
    assert not np.array_equal(tape.VHS(seed=2)(frame, 4), first)


def test_without_strength_nothing_happens():
    frame, x = page(), torch.rand(3, 24, 32) * 2 - 1
    assert np.array_equal(tape.VHS(strength=0)(frame, 3), frame)
    assert torch.equal(tape.VHS(strength=0)(x, 3), x)


def test_more_strength_is_farther_from_the_frame():
    frame = page().astype(int)
    looks = (tape.VHS(strength=s, counter="") for s in (0.1, 0.4, 1.0))
    far = [abs(look(frame.astype(np.uint8), 2) - frame).mean() for look in looks]
    assert 0 < far[0] < far[1] < far[2]


def share_above(plane, cycles):
    """Of the energy of its lines, how much lies above so many cycles a line."""
    power = abs(np.fft.rfft(plane - plane.mean(1, keepdims=True), axis=1)) ** 2
    return power[:, cycles:].sum() / power.sum()


def planes(frame):
    return [np.asarray(c).astype(float) for c in Image.fromarray(frame).convert("YCbCr").split()]


def test_a_tape_keeps_less_of_colour_than_of_brightness():
    """A grid of stripes between the two bandwidths: passes as brightness, is lost as colour."""
    width, cycles = 512, 60  # below 128 / 2, above 32 / 2
    wave = np.cos(2 * np.pi * cycles * np.arange(width) / width)
    grey = (128 + 60 * wave)[None, :, None].repeat(64, 0).repeat(3, 2).round().astype(np.uint8)
    ycc = np.full((64, width, 3), 128, np.uint8)
    ycc[..., 2] = (128 + 60 * wave).round()
    red = np.asarray(Image.fromarray(ycc, "YCbCr").convert("RGB"))
    look = tape.VHS(luma=256, chroma=32, delay=0, **QUIET)
    bright = planes(look(grey))[0].std() / planes(grey)[0].std()
    colour = planes(look(red))[2].std() / planes(red)[2].std()
    assert bright > 0.5 and colour < 0.1


@pytest.mark.parametrize(("luma", "chroma"), [(128, 32), (64, 16), (32, 16)])
def test_what_is_kept_lies_below_half_the_samples(luma, chroma):
    rng = np.random.default_rng(0)
    noise = rng.integers(40, 216, (64, 512, 3)).astype(np.uint8)
    look = tape.VHS(luma=luma, chroma=chroma, delay=0, **QUIET)
    y, _, cr = planes(look(noise))
    assert share_above(planes(noise)[0], luma) > 0.4  # white noise has it everywhere
    assert share_above(y, luma) < 0.05 and share_above(cr, 2 * chroma) < 0.05
    assert share_above(y, chroma // 2) > 0.3


def test_colour_comes_late_and_brightness_does_not():
    ycc = np.full((32, 400, 3), 128, np.uint8)
    ycc[:, 200:, 2] = 190
    ycc[:, 200:, 0] = 150
    frame = np.asarray(Image.fromarray(ycc, "YCbCr").convert("RGB"))
    y, _, cr = planes(tape.VHS(luma=200, chroma=100, delay=0.05, **QUIET)(frame))
    middle = {name: int((a.mean(0) > level).argmax()) for name, a, level in
              (("y", y, 139), ("cr", cr, 159))}  # fmt: skip
    assert abs(middle["y"] - 200) <= 3 and abs(middle["cr"] - 220) <= 4


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"strength": 1.5}, "strength is a finite number in \\[0, 1\\], got 1.5"),
        ({"luma": 1}, "luma is an integer >= 2, got 1"),
        ({"seed": -1}, "seed is an integer >= 0"),
        ({"delay": float("nan")}, "delay is a finite number"),
    ],
)
def test_a_tape_says_what_it_wants(settings, says):
    with pytest.raises(ValueError, match=says):
        tape.VHS(**settings)


@pytest.mark.parametrize("frame", [page() / 255, page()[..., 0], None, torch.zeros(1, 8, 8)])
def test_a_tape_plays_pictures_only(frame):
    with pytest.raises(ValueError, match="a frame is"):
        tape.VHS()(frame)
    with pytest.raises(ValueError, match="no alpha"):
        tape.VHS()(np.zeros((8, 8, 4), np.uint8))


# The film -----------------------------------------------------------------------------------------


def decoded(path):
    """(frames as RGB, frames a second, pixel format) of a film, by its decoder."""
    with av.open(str(path)) as box:
        (stream,) = box.streams
        frames = [f.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
                  for f in box.decode(stream)]  # fmt: skip
        return frames, stream.average_rate, stream.codec_context


def psnr(a, b):
    return 10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize("fps", [24, 30, 12.5])
def test_what_is_decoded_is_what_was_given(tmp_path, fps):
    path = film.clip(moving(12), tmp_path / "x.mp4", fps=fps, quality=10)
    frames, rate, codec = decoded(path)
    assert len(frames) == 12 and float(rate) == fps
    assert (codec.name, codec.pix_fmt, codec.width, codec.height) == ("h264", "yuv420p", 128, 96)
    assert min(psnr(a, b) for a, b in zip(frames, moving(12), strict=True)) > 28
    assert psnr(frames[0], list(moving(12))[11]) < 28  # so the order is right


def test_colours_are_those_given(tmp_path):
    flat = np.full((64, 64, 3), (213, 94, 0), np.uint8)
    frames, _, codec = decoded(film.clip([flat] * 3, tmp_path / "x.mp4", quality=10))
    assert abs(frames[1].astype(int) - flat).max() <= 4
    assert (codec.colorspace, codec.color_primaries, codec.color_trc) == (1, 1, 1)


def test_the_index_stands_in_front(tmp_path):
    """A browser can begin before the whole file has come."""
    data = film.clip(moving(4), tmp_path / "x.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_a_ceiling_makes_a_film_smaller(tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (96, 128, 3)).astype(np.uint8) for _ in range(30)]
    free = film.clip(noise, tmp_path / "free.mp4").stat().st_size
    tight = film.clip(noise, tmp_path / "tight.mp4", most=400_000).stat().st_size
    assert tight < 400_000 / 8 * 2.5 < free  # a second, and the buffer


def test_a_gif_holds_every_frame(tmp_path):
    path = film.clip(moving(5), tmp_path / "x.gif", fps=20)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (5, (128, 96), 0)
        for i, given in enumerate(moving(5)):
            gif.seek(i)
            assert gif.info["duration"] == 50
            assert psnr(np.asarray(gif.convert("RGB")), given) > 28


@pytest.mark.parametrize("name", ["shots/", "shots/frame_%04d.png"])
def test_pictures_keep_alpha_and_every_value(tmp_path, name):
    clear = [
        np.dstack([a, np.full(a.shape[:2], 17 * i, np.uint8)]) for i, a in enumerate(moving(3))
    ]
    film.clip(moving(6), f"{tmp_path}/{name}")
    film.clip(clear, f"{tmp_path}/{name}")  # a shorter one takes its place, no tail is left
    files = sorted((tmp_path / "shots").iterdir())
    assert [f.name for f in files] == [f"frame_{i:04d}.png" for i in range(3)]
    assert all(np.array_equal(Image.open(f), a) for f, a in zip(files, clear, strict=True))


def test_frames_may_be_tensors_and_figures(tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x = torch.tensor([-1.0, 0.2, 1.0])[:, None, None].expand(3, 8, 10)
    assert np.array_equal(film.rgb(x)[7, 9], [0, 153, 255])
    fig = plt.figure(figsize=(2, 1), dpi=50)
    assert film.rgb(fig).shape == (50, 100, 4)
    assert np.array_equal(film.rgb(torch.cat([x, -x[:1]]))[7, 9], [0, 153, 255, 255])
    plt.close(fig)


def test_frames_are_fitted_and_centred(tmp_path):
    white = np.full((10, 10, 3), 255, np.uint8)
    film.clip([white], tmp_path / "a_%d.png", size=(40, 20))
    frame = np.asarray(Image.open(tmp_path / "a_0.png"))
    assert frame.shape == (20, 40, 3)
    assert (frame[:, 10:30] == 255).all() and not frame[:, :10].any() and not frame[:, 30:].any()


@pytest.mark.parametrize("flat", [(1, 90, 3), (90, 1, 3)])
def test_what_would_be_scaled_to_nothing_keeps_a_line(tmp_path, flat):
    film.clip([np.full(flat, 255, np.uint8)], tmp_path / "a_%d.png", size=(30, 30))
    frame = np.asarray(Image.open(tmp_path / "a_0.png"))
    assert [frame.any((1, 2)).sum(), frame.any((0, 2)).sum()] == [min(n, 30) for n in flat[:2]]


def test_progress_counts_and_a_look_sees_the_number(tmp_path):
    told, seen = [], []

    def look(frame, i, fps):
        seen.append((i, fps))
        return frame

    film.clip(moving(3), tmp_path / "x.gif", fps=10, look=look, progress=told.append)
    assert told == [1, 2, 3] and seen == [(0, 10), (1, 10), (2, 10)]


def test_frames_are_asked_for_one_by_one(tmp_path):
    """So that no film has to fit into memory."""
    asked = []

    def frames():
        for i, frame in enumerate(moving(40)):
            asked.append(i)
            yield frame

    film.clip(frames(), tmp_path / "x.mp4", progress=lambda n: asked[-1] == n - 1 or pytest.fail())
    assert len(asked) == 40


@pytest.mark.parametrize("name", ["100%_%02d.png", "%d of %d.png"])
def test_of_a_name_only_the_number_is_a_number(tmp_path, name):
    front, form, back = name.partition(re.search("%0?2?d", name)[0])
    for count in (3, 2):  # the tail of the longer film goes
        film.clip(moving(count), tmp_path / name)
        names = {f"{front}{form % i}{back}" for i in range(count)}
        assert {path.name for path in tmp_path.iterdir()} == names


class Stopped(Exception):
    pass


def broken(n):
    yield from itertools.islice(moving(30), n)
    raise Stopped


@pytest.mark.parametrize("name", ["x.mp4", "x.gif", "x_%02d.png"])
@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
def test_a_film_is_written_whole_or_not_at_all(tmp_path, name, error):
    film.clip(moving(4), tmp_path / name)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    frames = broken(9) if error is Stopped else moving(9)

    def progress(n):
        if error is KeyboardInterrupt and n == 6:
            raise KeyboardInterrupt

    with pytest.raises(error):
        film.clip(frames, tmp_path / name, progress=progress)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("frames", "path", "how", "says"),
    [
        ([], "x.mp4", {}, "one frame at least, got none"),
        ([page(), page(48, 64)], "x.mp4", {}, "of one shape: the first is .96, 128, 3., number 1"),
        ([page(95, 128)], "x.mp4", {}, "even width and height, got 128 x 95: size=.128, 96."),
        ([page()], "x.mp4", {"size": (121, 90)}, "even width and height, got 121 x 90"),
        ([page()], "x.avi", {}, "ends in .mp4 or .gif, or is a folder/"),
        ([page()], "x.mp4", {"fps": 0}, "fps is a finite number in .0.001, 240., got 0"),
        ([page()], "x.gif", {"fps": 60}, "fps is a finite number in .0.002, 50., got 60"),
        ([page()], "x.gif", {"fps": 0.001}, "fps is a finite number in .0.002, 50., got 0.001"),
        ([page()], "x.mp4", {"quality": 52}, "quality is an integer in 0 ... 51"),
        ([torch.full((3, 8, 8), 1.2)], "x.gif", {}, "lies in .-1, 1., got values from 1.2 to 1.2"),
        ([torch.full((3, 8, 8), float("nan"))], "x.gif", {}, "lies in .-1, 1."),
        ([torch.zeros(1, 3, 8, 8)], "x.gif", {}, "one image .3 or 4, H, W."),
        ([page() / 255.0], "x.gif", {}, "got float64 .96, 128, 3.: of an array a in .0, 1. take"),
        (["a"], "x.gif", {}, "a frame is an image"),
    ],
)
def test_bad_input_gets_a_sentence_and_leaves_nothing(tmp_path, frames, path, how, says):
    with pytest.raises(ValueError, match=says):
        film.clip(frames, tmp_path / path, **how)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_takes_no_files_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        film.clip(moving(2), tmp_path / "file" / "x.gif")


def test_without_pyav_the_cure_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "av":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "av>=17"'):
        film.clip(moving(2), tmp_path / "x.mp4")
    film.clip(moving(2), tmp_path / "x.gif")


# In a browser -------------------------------------------------------------------------------------

PLAYED = """async video => {
  video.muted = true;
  await video.play();
  await new Promise((done, fail) => {
    video.onended = done;
    video.onerror = () => fail(new Error(video.error.message));
  });
  return [video.readyState, video.currentTime, video.videoWidth, video.videoHeight];
}"""


@pytest.mark.browser
def test_a_browser_plays_the_films(tmp_path):
    """From its first frame to the end, the colour of a frame as it was given."""
    from test_book import browser_path

    executable = browser_path()
    playwright = pytest.importorskip("playwright.sync_api")
    film.clip(moving(15), tmp_path / "x.mp4", quality=10)
    (tmp_path / "x.html").write_text('<!doctype html><video src="x.mp4" preload="auto"></video>')
    pages = [tmp_path / "x.html"]
    for path in sorted(clips.KEPT.glob("*.mp4")):
        pages.append(tmp_path / f"{path.stem}.html")
        pages[-1].write_text(f'<!doctype html><video src="{path.as_uri()}"></video>')
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=executable, args=["--disable-gpu"])
        context = browser.new_context(offline=True)
        context.set_default_timeout(180_000)
        for page in pages:
            tab = context.new_page()
            tab.goto(page.as_uri())
            ready, at, width, height = tab.eval_on_selector("video", PLAYED)
            assert ready >= 2 and at > 0.4 and (width, height) in ((128, 96), clips.SIZE)
            tab.close()
        browser.close()


CLEAR = np.full((16, 16, 4), 99, np.uint8)


@pytest.mark.parametrize(
    "frames, end, how, words",
    [
        ([CLEAR] * 2, "x.mp4", {}, "an MP4 takes frames without transparency"),
        ([CLEAR] * 2, "x.gif", {}, "a GIF takes frames without transparency"),
        ([CLEAR] * 2, "x/", {"look": tape.VHS()}, "a look takes frames without transparency"),
        ([CLEAR] * 2, "x/", {"look": tape.VHS}, r"look is called as look\(frame, i, fps\)"),
        ([CLEAR] * 2, "x/", {"look": "vhs"}, r"look is called as look\(frame, i, fps\)"),
        ([CLEAR] * 2, "x/", {"size": 1080}, r"size is \(width, height\)"),
        ([CLEAR] * 2, "x/", {"size": "1080p"}, r"size is \(width, height\)"),
        (scenes.rotate_stretch_rotate(n=12), "x/", {}, r"one by one, as scene.frames\(\)"),
        (3, "x/", {}, r"one by one, as scene.frames\(\)"),
    ],
)
def test_what_no_film_can_show_is_refused_in_words(tmp_path, frames, end, how, words):
    with pytest.raises(ValueError, match=words):
        film.clip(frames, f"{tmp_path}/{end}", **how)
    assert not list(tmp_path.rglob("*.*"))


def test_alpha_that_hides_nothing_is_none(tmp_path):
    solid = CLEAR.copy()
    solid[..., 3] = 255
    assert film.clip([solid] * 2, tmp_path / "x.mp4").exists()


def test_pictures_of_pillow_are_frames():
    picture = Image.fromarray(CLEAR)
    assert np.array_equal(film.rgb(picture), CLEAR)
    assert np.array_equal(film.rgb(picture.convert("RGB")), CLEAR[..., :3])

"""The examiner: the shipped reader against the truth, and the fit through the renderer."""

import pytest
import torch

from mathkit.show import puppets, reader
from mathkit.show.puppets import STRANGER


@pytest.fixture(scope="module")
def frames():
    q = puppets.sample_factors(400, seed=77)
    return q, puppets.render(q)


def test_the_reader_reads_every_factor(frames):
    q, images = frames
    with torch.no_grad():
        z = reader.read_factors(images)
    assert z.shape == q.shape
    wrong = (z - q)[:, :STRANGER].square().mean(0) / q[:, :STRANGER].var(0)
    assert (1 - wrong).min() >= 0.98
    assert ((z[:, STRANGER] > 0.5) == (q[:, STRANGER] > 0.5)).float().mean() >= 0.995
    there = q[:, STRANGER] > 0.5
    assert (z - q)[there][:, STRANGER + 1 :].abs().mean() < 0.03


def test_the_reader_notices_a_factor_that_moved(frames):
    """Planted error: a frame drawn with other factors is not read as these."""
    q, _ = frames
    moved = q.clone()
    moved[:, 4] = 1 - moved[:, 4]
    with torch.no_grad():
        z = reader.read_factors(puppets.render(moved))
    wrong = (z - q)[:, 4].square().mean() / q[:, 4].var()
    assert 1 - wrong < 0


@pytest.mark.long
def test_the_fit_finds_the_factors_and_the_distance(frames):
    q, images = frames
    noise = 0.05 * torch.randn(images[:12].shape, generator=torch.Generator().manual_seed(0))
    found, distance = reader.fit_factors(images[:12] + noise)
    assert (found - q[:12])[:, :STRANGER].abs().mean() < 0.01
    assert torch.allclose(distance, torch.full((12,), 0.05), rtol=0.05)


@pytest.mark.long
def test_the_fit_measures_the_distance_of_what_is_no_puppet(frames):
    _, images = frames
    strange = images[:4].flip(2)
    _, far = reader.fit_factors(strange)
    _, near = reader.fit_factors(images[:4])
    assert near.max() < 0.02 and far.min() > 5 * near.max()


def test_the_fit_keeps_the_stranger_it_is_given(frames):
    q, images = frames
    found, distance = reader.fit_factors(images[:4], steps=5, stranger=1 - q[:4, STRANGER])
    assert torch.equal(found[:, STRANGER], 1 - q[:4, STRANGER])
    assert distance.isfinite().all()


def test_a_fit_takes_a_step(frames):
    with pytest.raises(ValueError, match="steps is an integer >= 1, got 0"):
        reader.fit_factors(frames[1][:1], steps=0)


def test_features_have_one_row_an_image(frames):
    assert reader.read_features(frames[1][:5]).shape == (5, 256)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, 64, 64), "image\\[None\\]"),
        (torch.zeros(1, 3, 32, 32), "64, 64"),
        (torch.zeros(1, 1, 64, 64), "64, 64"),
        (torch.full((1, 3, 64, 64), 200.0), "200"),
        (torch.full((1, 3, 64, 64), float("nan")), "NaN"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "127.5"),
    ],
)
def test_what_is_no_image_is_refused(images, words):
    with pytest.raises(ValueError, match=words):
        reader.read_factors(images)

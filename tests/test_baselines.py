"""The rows that need no derivative, against what must hold of them whatever the network."""

import dataclasses

import pytest
import torch
from conftest import make_tiny_unet

import mathkit as mk
from mathkit.chapters import treatment
from mathkit.diffusion import gaussian, model, networks
from studies import baselines
from studies.baselines import ROWS, Baseline

pytestmark = pytest.mark.long
AVERAGE = torch.full((1, 3, 64, 64), 0.3)


@pytest.fixture(scope="module")
def p():
    unet = make_tiny_unet(size=64)
    return networks.UNetModel(unet, model.linear_schedule(1000), "v_prediction")


def cases_of(region, n=2):
    zero = torch.zeros(n, 3, 64, 64)
    spot = region.expand(n, 64, 64)
    return treatment.Cases(1, list(range(4, 4 + n)), 583, None, zero, zero, zero, zero, zero, spot)


@pytest.fixture(scope="module")
def left_half():
    region = torch.zeros(1, 64, 64)
    region[..., :32] = 1
    return cases_of(region)


@pytest.fixture(scope="module")
def path(p, left_half):
    return treatment.path(p, left_half)


def row_of(kind):
    return next(row for row in ROWS if row.kind == kind)


def test_the_path_is_the_samples_own(p, left_half, path):
    images = mk.sample(p, seed=1, index=left_half.index)
    assert torch.allclose(path[-1], images, atol=1e-5)


@pytest.mark.parametrize("kind", ["redrawn", "pasted"])
def test_outside_the_region_nothing_changes_and_inside_all_does(p, left_half, path, kind):
    images, _ = baselines.treated(p, left_half, row_of(kind), AVERAGE, path)
    untreated = path[-1].clamp(-1, 1)
    assert torch.equal(images[..., 32:], untreated[..., 32:])
    assert not torch.equal(images[..., :32], untreated[..., :32])


def test_without_a_region_the_picture_is_the_untreated_one(p):
    nowhere = cases_of(torch.zeros(1, 64, 64))
    path = treatment.path(p, nowhere)
    images, _ = baselines.treated(p, nowhere, row_of("redrawn"), AVERAGE, path)
    assert torch.equal(images, path[-1].clamp(-1, 1))


def test_what_is_pasted_in_at_the_last_moment_stays(p, left_half, path):
    late = dataclasses.replace(row_of("pasted"), since=0)
    images, _ = baselines.treated(p, left_half, late, AVERAGE, path)
    assert (images[..., :32] - 0.3).abs().mean() < 0.05


def test_only_those_in_whom_he_is_seen_are_drawn_again(p, left_half, path, monkeypatch):
    looks = []

    def seen(images):
        looks.append(len(images))
        return torch.tensor([False, True])[-len(images) :]

    monkeypatch.setattr(treatment, "read_stranger", seen)
    three = Baseline("", "redrawn", looks=3)
    images, draws = baselines.treated(p, left_half, three, AVERAGE, path)
    once, _ = baselines.treated(p, left_half, row_of("redrawn"), AVERAGE, path)
    assert draws.tolist() == [1, 3] and looks == [2, 2]
    assert torch.equal(images[0], once[0]) and not torch.equal(images[1], once[1])
    again, _ = baselines.treated(p, left_half, three, AVERAGE, path, drawn=once)
    assert torch.equal(again, images)


def test_a_draw_depends_on_its_sample_alone(p, left_half, path):
    both, _ = baselines.treated(p, left_half, row_of("redrawn"), AVERAGE, path)
    second = {t: x[1:] for t, x in path.items()}
    alone, _ = baselines.treated(p, left_half[1], row_of("redrawn"), AVERAGE, second)
    assert torch.allclose(both[1:], alone, atol=1e-4)


def test_guidance_of_no_strength_is_the_untreated_sample(p, left_half, path):
    images = baselines.guided(p, left_half, AVERAGE, 83, 0.0)
    assert torch.allclose(images, path[-1].clamp(-1, 1), atol=1e-4)


def test_guidance_leads_the_region_towards_the_average_and_further_with_more_strength():
    p = gaussian.GaussianModel(torch.zeros(3, 4, 4), 0.05 * torch.eye(48))
    zero = torch.zeros(1, 3, 4, 4)
    cases = treatment.Cases(0, [3], 583, None, *[zero] * 5, torch.ones(1, 4, 4))
    ends = [baselines.guided(p, cases, zero + 0.5, 250, s) for s in (0.0, 0.05, 0.1)]
    far = [float((end - 0.5).norm()) for end in ends]
    assert far[0] > far[1] > far[2]


def test_every_row_is_of_a_kind_that_can_be_treated_and_has_its_own_name():
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert {row.kind for row in ROWS} == {"untreated", "redrawn", "pasted", "guided"}

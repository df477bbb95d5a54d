"""Planted crowds, and the dictionaries that count them, against what was planted."""

import math

import pytest
import torch

from mathkit.chapters import dictionaries


def test_whitened_rows_have_the_identity_for_covariance():
    g = torch.Generator().manual_seed(0)
    X = torch.randn(500, 4, generator=g) @ torch.randn(4, 4, generator=g) + 3
    white = dictionaries.whitened(X, floor=0.0).double()
    assert torch.allclose(torch.cov(white.T), torch.eye(4, dtype=torch.float64), atol=1e-4)
    assert white.mean(0).abs().max() < 1e-5
    flat = dictionaries.whitened(torch.cat([X, 0 * X[:, :1]], 1))  # nothing there: the floor holds
    assert flat[:, 4].abs().max() < 1e-3


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_planted_features_have_their_share_of_the_mean_square(share):
    x, f = dictionaries.crowd(8, share, rows=20_000, m=64, active=2)
    inside = (x @ torch.linalg.qr(f.T).Q).square().sum(1).mean()  # the Gaussian rest has 8 of 64
    assert abs(inside - (share + (1 - share) * 8 / 64)) < 0.02
    assert (
        torch.allclose(f.norm(dim=1), torch.ones(8), atol=1e-6)
        and abs(x.square().sum(1).mean() - 1) < 0.05
    )


def test_dictionaries_agree_on_planted_axes_and_not_on_noise():
    """Rows that lie along six axes: each dictionary must hold all six. Gaussian rows: no axis."""
    g = torch.Generator().manual_seed(0)
    at, size = torch.randint(6, (2000,), generator=g), 0.5 + torch.rand(2000, 1, generator=g)
    pace = {"atoms": 24, "active": 1, "steps": 300, "batch": 256}
    for X, found in ((torch.eye(6)[at] * size, True), (torch.randn(2000, 6, generator=g), False)):
        D, codes = dictionaries.dictionary(X, seed=1, **pace)
        other = dictionaries.dictionary(X, seed=2, **pace)[0]
        held = (D @ torch.eye(6)).amax(0) > 0.95, (other @ torch.eye(6)).amax(0) > 0.95
        assert all(bool(h.all()) for h in held) == found
        assert torch.equal((codes > 0).sum(1).clamp(max=1), (codes > 0).sum(1))
        assert torch.allclose(D.norm(dim=1), torch.ones(24), atol=1e-6)


def test_a_dictionary_depends_on_its_seed_alone():
    X = dictionaries.crowd(10, 0.8, rows=200, m=8)[0]
    one, same, other = (dictionaries.dictionary(X, 16, 2, steps=5, seed=s)[0] for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.allclose(one, other, atol=1e-6)


def test_entries_in_use_agree_if_they_point_one_way():
    D, codes = torch.eye(4), torch.ones(50, 4)
    assert dictionaries.agreed(D, codes, D.flip(0)) == 4
    assert dictionaries.agreed(D, codes, -D) == 0  # a feature has one sign
    assert dictionaries.agreed(D, codes * torch.tensor([1.0, 0, 1, 1]), D) == 3
    turned = torch.tensor([[math.cos(0.5), math.sin(0.5), 0, 0]])
    assert dictionaries.agreed(D, codes, turned) == 0
    assert dictionaries.agreed(D, codes, turned, level=0.85) == 1


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: dictionaries.whitened(torch.randn(3, 4)), "take more rows"),
        (lambda: dictionaries.whitened(torch.full((5, 2), torch.nan)), "take more rows"),
        (lambda: dictionaries.whitened(torch.ones(5, 2)), "all alike"),
        (lambda: dictionaries.dictionary(torch.zeros(9, 2), 4, active=1), "not zero"),
        (lambda: dictionaries.crowd(5, 0.5, rows=3, m=4), "n over 6"),
        (lambda: dictionaries.crowd(20, 1.5, rows=3, m=4), "share is in"),
        (lambda: dictionaries.dictionary(torch.randn(5, 2), 4, active=5), "active in 1 ... 4"),
        (lambda: dictionaries.dictionary(torch.randn(5)), "finite"),
    ],
)
def test_what_cannot_be_planted_or_looked_up_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()

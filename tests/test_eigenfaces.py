"""Eigenfaces against scikit-learn's PCA, and the sets they are taken of."""

import os
from pathlib import Path

import pytest
import torch
from sklearn.decomposition import PCA

from mathkit.chapters import eigenfaces
from mathkit.linear import adjoint, arrays, subspaces

HOME = Path(os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")).expanduser()
OLIVETTI = HOME / "olivetti_py3.pkz"


@pytest.fixture(scope="module")
def lfw():
    return eigenfaces.load_faces("lfw")


@pytest.mark.parametrize("name", ["lfw", "puppets"])
def test_eigenfaces_are_scikit_learns(name):
    images = eigenfaces.load_faces(name, 60)
    found = eigenfaces.eigenfaces(images, 8, tol=1e-6)
    oracle = PCA(8, svd_solver="full").fit(images.flatten(1).double().numpy())
    axes = torch.tensor(oracle.components_)
    assert subspaces.principal_angles(found.axes.flatten(1), axes).max() < 1e-3
    cosines = (found.axes.flatten(1).double() * axes).sum(1).abs()
    assert cosines.min() > 1 - 1e-4
    assert torch.allclose(
        found.variances.double(), torch.tensor(oracle.explained_variance_), atol=1e-6
    )
    assert torch.allclose(
        found.explained.double(), torch.tensor(oracle.explained_variance_ratio_), rtol=1e-4
    )


def test_coordinates_are_uncorrelated_and_their_variances_are_the_eigenvalues(lfw):
    found = eigenfaces.eigenfaces(lfw, 10, tol=1e-6)
    C = found.coordinates(lfw).double()
    cov = C.T @ C / (len(lfw) - 1)
    assert C.mean(0).abs().max() < 1e-4
    assert torch.allclose(cov, torch.diag(found.variances.double()), atol=1e-3 * cov.max())


def test_what_k_axes_leave_is_the_variance_of_the_rest(lfw):
    """Eckart and Young: the error of the rebuilt set is the sum of the variances left out."""
    found = eigenfaces.eigenfaces(lfw, 20, tol=1e-6)
    for k in (1, 5, 20):
        rebuilt = found.rebuild(found.coordinates(lfw)[:, :k])
        left = (lfw - rebuilt).double().square().sum() / (len(lfw) - 1)
        assert float(left) == pytest.approx(
            found.total - float(found.variances[:k].sum()), rel=1e-3
        )


def test_all_axes_rebuild_every_face():
    images = eigenfaces.load_faces("lfw", 12)
    found = eigenfaces.eigenfaces(images, 11, tol=1e-6)
    assert (found.rebuild(found.coordinates(images)) - images).abs().max() < 1e-3


def test_the_centred_map_is_one_map_and_its_transpose(lfw):
    A = eigenfaces.centred(lfw)
    assert adjoint.check_adjoint(A) < 1e-5
    assert A.push(torch.randn(2, *A.in_shape)).sum(1).abs().max() < 1e-2  # its rows add up to zero


def test_the_sets_are_faces_in_range(lfw):
    for images, shape in (
        (lfw, (100, 1, 25, 25)),
        (eigenfaces.load_faces("puppets", 5), (5, 3, 64, 64)),
    ):
        assert images.shape == shape and images.dtype == torch.float32
        assert -1.01 <= images.min() < images.max() <= 1.05


def test_faces_can_be_made_smaller_by_averaging():
    small, large = eigenfaces.load_faces("puppets", 3, size=16), eigenfaces.load_faces("puppets", 3)
    averaged = large.unflatten(3, (16, 4)).unflatten(2, (16, 4)).mean((3, 5))
    assert torch.allclose(small, averaged, atol=1e-6)


@pytest.mark.skipif(
    not OLIVETTI.exists(), reason="no Olivetti faces in scikit-learn's data home: SCIKIT_LEARN_DATA"
)
def test_olivetti_faces_are_found_where_scikit_learn_keeps_them():
    images = eigenfaces.load_faces("olivetti", 40)
    assert images.shape == (40, 1, 64, 64) and -1 <= images.min() < images.max() <= 1
    people = images.reshape(4, 10, -1)
    same = (people[:, :1] - people[:, 1:]).norm(dim=2).mean()
    other = (people[:1] - people[1:]).norm(dim=2).mean()
    assert same < other  # ten in a row are one person


def test_absent_olivetti_faces_say_how_to_fetch_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="fetch_olivetti_faces"):
        eigenfaces.load_faces("olivetti", data_home=tmp_path)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: eigenfaces.load_faces("lfwa"), "one of lfw, olivetti, puppets"),
        (lambda: eigenfaces.load_faces("lfw", 1), "count is an integer >= 2"),
        (lambda: eigenfaces.load_faces("lfw", 101), "holds 100 faces"),
        (lambda: eigenfaces.load_faces("lfw", size=0), "size is an integer >= 1"),
        (
            lambda: eigenfaces.eigenfaces(torch.randn(5, 9), 5),
            r"k, of 5 images, .* 1 \.\.\. 4, got 5",
        ),
        (
            lambda: eigenfaces.eigenfaces(torch.randn(5, 9), 0),
            r"k, of 5 images, .* 1 \.\.\. 4, got 0",
        ),
        (lambda: eigenfaces.centred(torch.full((3, 2), torch.nan)), "finite"),
        (lambda: eigenfaces.centred(torch.randn(1, 4)), "N >= 2"),
    ],
)
def test_bad_input_is_told_what_was_expected(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_uncentred_axes_are_noticed(lfw):
    """Planted: without taking the mean away, the first axis is the mean face, not an eigenface."""
    wrong = arrays.matrix(lfw.flatten(1))
    from mathkit.linear.svd import svd

    first = svd(wrong, 1).V
    right = eigenfaces.eigenfaces(lfw, 1).axes.flatten(1)
    assert subspaces.principal_angles(first, right).max() > 0.1

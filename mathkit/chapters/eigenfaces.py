"""Sets of faces and their eigenfaces: the right singular vectors of the centred data matrix."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mathkit.arguments import integer, tensor
from mathkit.linear.linear_map import LinearMap
from mathkit.linear.svd import svd
from mathkit.show import puppets
from mathkit.show.posterior import Posterior

SETS = ("lfw", "olivetti", "puppets")


def load_faces(
    name: str,
    count: int | None = None,
    data_home: str | Path | None = None,
    size: int | None = None,
) -> Tensor:
    """A set of faces in [-1, 1]. Nothing is downloaded.

    "lfw": 100 grey faces of 25 x 25 that come with scikit-image (Labeled Faces in the Wild);
    "olivetti": 400 grey faces of 64 x 64, ten each of forty people, where scikit-learn's loader
    finds them; "puppets": frames of the show without the Stranger, 64 x 64 in colour.

    Args:
        name: "lfw", "olivetti" or "puppets".
        count: the first so many of them, >= 2; default all, of the puppets 400.
        data_home: where the Olivetti faces are, default SCIKIT_LEARN_DATA or ~/scikit_learn_data.
        size: height and width, by averaging over areas; default as they are.

    Returns: (N, channels, H, W).
    Raises ValueError for another name, count or size, FileNotFoundError with the command that
    fetches the Olivetti faces.
    Cost: no pass; N renders for the puppets.

    >>> from mathkit.chapters import eigenfaces
    >>> eigenfaces.load_faces("lfw", 20).shape
    torch.Size([20, 1, 25, 25])
    """
    if name not in SETS:
        raise ValueError(f"a set of faces is one of {', '.join(SETS)}, got {name!r}")
    if count is not None:
        count = integer(count, "count", 2)
    if name == "puppets":
        q = puppets.sample_factors(count or 400, seed=9, stranger=0)
        images = torch.cat([puppets.render(part) for part in q.split(200)])
    else:
        images = 2 * (_lfw() if name == "lfw" else _olivetti(data_home))[:, None] - 1
    if count is not None and count > len(images):
        raise ValueError(f"{name} holds {len(images)} faces, {count} were asked for")
    if size is None:
        return images[:count]
    return torch.nn.functional.interpolate(images[:count], integer(size, "size", 1), mode="area")


def _lfw() -> Tensor:
    from skimage.data import lfw_subset

    return torch.tensor(lfw_subset()[:100], dtype=torch.float32)  # the other hundred are no faces


def _olivetti(home: str | Path | None) -> Tensor:
    from sklearn.datasets import fetch_olivetti_faces, get_data_home

    folder = get_data_home(home)
    with warnings.catch_warnings():  # the published file was written by an old joblib
        warnings.filterwarnings("ignore", ".*joblib version less than", DeprecationWarning)
        try:
            found = fetch_olivetti_faces(data_home=folder, download_if_missing=False)
        except OSError as error:
            raise FileNotFoundError(
                f"no Olivetti faces in {folder}. To fetch them (4 MB, once, with a network): "
                'python -c "from sklearn.datasets import fetch_olivetti_faces as f; '
                f'f(data_home={folder!r})"'
            ) from error
    return torch.tensor(found.images, dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class Eigenfaces:
    """Principal axes of a set of images, largest variance first; `eigenfaces` finds them.

    Args:
        mean: the mean image (*shape).
        axes: (k, *shape), orthonormal rows, the entry largest by magnitude positive.
        variances: (k,), of the coordinate along each axis, l_i = s_i^2 / (N - 1).
        total: the sum of all variances.

    >>> from mathkit.chapters import eigenfaces
    >>> found = eigenfaces.Eigenfaces(torch.zeros(2), torch.eye(2)[:1], torch.tensor([3.0]), 4.0)
    >>> found.coordinates(torch.tensor([[5.0, 7.0]]))
    tensor([[5.]])
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor
    total: float

    @property
    def explained(self) -> Tensor:
        """Share of the variance along each axis, (k,)."""
        return self.variances / self.total

    def coordinates(self, images: Tensor) -> Tensor:
        """<x - mean, axis_i>: where images lie along the axes.

        Args:
            images: (B, *shape).

        Returns: (B, k).

        >>> from mathkit.chapters import eigenfaces
        >>> faces = eigenfaces.load_faces("lfw", 20)
        >>> eigenfaces.eigenfaces(faces, 3).coordinates(faces).shape
        torch.Size([20, 3])
        """
        return (images - self.mean).flatten(1) @ self.axes.flatten(1).T

    def rebuild(self, coordinates: Tensor) -> Tensor:
        """mean + sum_i c_i axis_i: the images at these coordinates.

        Args:
            coordinates: (B, j), along the first j <= k axes.

        Returns: (B, *shape).

        >>> from mathkit.chapters import eigenfaces
        >>> faces = eigenfaces.load_faces("lfw", 20)
        >>> found = eigenfaces.eigenfaces(faces, 19)  # as many axes as there are
        >>> torch.allclose(found.rebuild(found.coordinates(faces)), faces, atol=1e-3)
        True
        """
        axes = self.axes[: coordinates.shape[1]].flatten(1)
        return self.mean + (coordinates @ axes).reshape(-1, *self.mean.shape)


def centred(images: Tensor) -> LinearMap:
    """The centred data matrix as a map, rows x_i - mean: v -> (<x_i - mean, v>)_i.

    Its right singular vectors are the eigenfaces.

    Args:
        images: (N, *shape), N >= 2, floating point and finite.

    Returns: a `LinearMap` from shape to (N,).
    Raises ValueError for other images.
    Cost: no pass; a pass of it is one product with (N, numel of an image).

    >>> from mathkit.chapters import eigenfaces
    >>> eigenfaces.centred(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).dense()
    tensor([[-1.,  0.],
            [ 1.,  0.]])
    """
    tensor(images, "images", "(N, *shape)")
    if images.ndim < 2 or len(images) < 2 or not bool(images.isfinite().all()):
        raise ValueError(f"a set is (N, *shape), N >= 2 and finite, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images are floating-point, got {images.dtype}: images.float()")
    rows, shape = (images - images.mean(0)).flatten(1), images.shape[1:]
    return LinearMap(
        lambda V: V.flatten(1).to(rows) @ rows.T,
        lambda U: (U.to(rows) @ rows).reshape(-1, *shape),
        shape,
        (len(images),),
        rows.dtype,
        rows.device,
    )


def eigenfaces(images: Tensor, k: int, tol: float = 1e-4) -> Eigenfaces:
    """The top k principal axes of a set of images, by `svd` of the centred data matrix.

    Args:
        images: (N, *shape), N >= 2, floating point and finite.
        k: 1 ... min(N - 1, numel of one image).
        tol: of `mk.svd`.

    Returns: `Eigenfaces`.
    Raises ValueError for other images, and k outside its range.
    Cost: one `mk.svd` of rank k of an (N, numel of one image) matrix.
    Source: Sirovich & Kirby 1987; Turk & Pentland 1991.

    >>> from mathkit.chapters import eigenfaces
    >>> corners = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
    >>> eigenfaces.eigenfaces(corners, 2).explained
    tensor([0.8000, 0.2000])
    """
    A = centred(images)
    n, most = images[0].numel(), len(images) - 1
    k = integer(k, f"k, of {len(images)} images,", 1, min(n, most))
    r = svd(A, k, tol=tol)
    mean = images.mean(0)
    total = float((images - mean).double().square().sum() / most)
    return Eigenfaces(mean, r.V, r.S**2 / most, total)


@functools.lru_cache(maxsize=4)
def eigenpuppets(truth: Posterior, k: int, count: int = 2000) -> Tensor:
    """The top k principal axes of the show's frames.

    Args:
        truth: the `Posterior` whose bank holds the frames.
        k: how many axes.
        count: how many of the frames, the first ones.

    Returns: (k, 3, size, size), orthonormal rows.
    Raises ValueError for k outside 1 ... frames - 1.
    Cost: one `mk.svd` of rank k, the first time.

    >>> from mathkit.chapters import eigenfaces
    >>> from mathkit.show.posterior import Posterior
    >>> eigenfaces.eigenpuppets(Posterior(50, size=16), 3).shape
    torch.Size([3, 3, 16, 16])
    """
    return eigenfaces(truth.bank[:count].float(), k, tol=1e-3).axes.reshape(k, *truth.shape)

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
    """A set of faces (N, channels, H, W) in [-1, 1]; the first `count` of them, default all.

    size: height and width, by averaging over areas; default as they are.

    "lfw": 100 grey faces of 25 x 25 that come with scikit-image (Labeled Faces in the Wild);
    "olivetti": 400 grey faces of 64 x 64, ten each of forty people, where scikit-learn's loader
    finds them (data_home, default SCIKIT_LEARN_DATA or ~/scikit_learn_data); "puppets": frames of
    the show without the Stranger, 64 x 64 in colour, default 400. Nothing is downloaded. Raises
    ValueError for another name or count, FileNotFoundError with the command that fetches the
    Olivetti faces.
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
    return torch.nn.functional.interpolate(images[:count], size, mode="area")


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
    """Principal axes of a set of images, largest variance first.

    mean (*shape); axes (k, *shape), orthonormal rows, the entry largest by magnitude positive;
    variances (k,): of the coordinate along each axis, l_i = s_i^2 / (N - 1); total: the sum of all
    variances.
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
        """<x - mean, axis_i> for images (B, *shape): (B, k)."""
        return (images - self.mean).flatten(1) @ self.axes.flatten(1).T

    def rebuild(self, coordinates: Tensor) -> Tensor:
        """mean + sum_i c_i axis_i for coordinates (B, j), j <= k: (B, *shape)."""
        axes = self.axes[: coordinates.shape[1]].flatten(1)
        return self.mean + (coordinates @ axes).reshape(-1, *self.mean.shape)


def centred(images: Tensor) -> LinearMap:
    """The centred data matrix as a map, rows x_i - mean: v -> (<x_i - mean, v>)_i.

    images (N, *shape), N >= 2 and finite, else ValueError. Its right singular vectors are the
    eigenfaces.
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
    """The top k principal axes of images (N, *shape), by `svd` of the centred data matrix.

    Raises ValueError for k outside 1 ... min(N - 1, numel of one image). Source: Sirovich & Kirby
    1987; Turk & Pentland 1991.
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
    """The top k principal axes of the show's frames, (k, 3, size, size)."""
    return eigenfaces(truth.bank[:count].float(), k, tol=1e-3).axes.reshape(k, *truth.shape)

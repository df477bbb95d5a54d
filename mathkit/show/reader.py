"""Read the puppet factors off an image: a small network, and a fit through the renderer."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from mathkit import data
from mathkit.arguments import integer, pictures, tensor
from mathkit.show import puppets
from mathkit.show.puppets import FACTORS, STRANGER


class Reader(nn.Module):
    """A convolutional network 3 x 64 x 64 -> 13 numbers: factors, and one logit for the Stranger.

    Args:
        width: channels of the first convolution; the others have 2, 4 and 4 times as many.
        hidden: width of the layer before the last.

    >>> from mathkit.show.reader import Reader
    >>> Reader()(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 13])
    """

    def __init__(self, width: int = 32, hidden: int = 256) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 4 * width]
        self.convolutions = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), nn.GroupNorm(8, b), nn.SiLU())
                for a, b in zip(widths, widths[1:], strict=False)
            )
        )
        self.hidden = nn.Linear(4 * width * 16, hidden)
        self.out = nn.Linear(hidden, len(FACTORS))

    def features(self, images: Tensor) -> Tensor:
        """The numbers before the last layer, (n, hidden), used for Frechet distances."""
        return nn.functional.silu(self.hidden(self.convolutions(images).flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.features(images))


@functools.lru_cache(maxsize=2)
def reader(device: str = "cpu") -> Reader:
    """The shipped factor reader, frozen, kept in memory; its card is in data/README.md.

    Args:
        device: where it computes, as torch names it.

    Returns: a `Reader` in eval mode.
    Raises FileNotFoundError or ValueError where the shipped weights are missing or changed.
    Cost: it is read once for each device.

    >>> from mathkit.show.reader import reader
    >>> sum(w.numel() for w in reader().parameters())
    956461
    """
    net = Reader()
    net.load_state_dict({k: v.float() for k, v in data.load_tensors("reader.safetensors").items()})
    return net.eval().requires_grad_(False).to(device)


def read_factors(images: Tensor, batch: int = 256) -> Tensor:
    """Read the factors off images, by a small network; differentiable in `images` where grad is
    enabled.

    Column "stranger" is a probability; "stranger_side" and "stranger_height" mean something only
    where it is large.

    Args:
        images: (n, 3, 64, 64), in [-1, 1].
        batch: how many go through the network at a time.

    Returns: (n, 13), columns as in `mk.puppets.FACTORS`.
    Raises ValueError for another shape, integers, NaN or a range beyond [-1.5, 1.5].
    Cost: n passes of a network of .96 M parameters.

    >>> q = torch.full((1, 13), 0.5)
    >>> read = mk.read_factors(mk.puppets.render(q))
    >>> bool((read - q)[0, :10].abs().max() < 0.1)  # the ten continuous factors
    True
    """
    _check(images)
    net = reader(str(images.device))
    z = torch.cat([net(part) for part in images.float().split(batch)])
    return torch.cat([z[:, :STRANGER], z[:, STRANGER, None].sigmoid(), z[:, STRANGER + 1 :]], 1)


def read_features(images: Tensor, batch: int = 256) -> Tensor:
    """The reader's last hidden layer, in which Frechet distances are taken.

    Args:
        images: (n, 3, 64, 64), in [-1, 1].
        batch: how many go through the network at a time.

    Returns: (n, 256), without a graph.
    Raises ValueError as `read_factors` does.
    Cost: n passes of the reader.

    >>> from mathkit.show.reader import read_features
    >>> read_features(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 256])
    """
    _check(images)
    net = reader(str(images.device))
    with torch.no_grad():
        return torch.cat([net.features(part) for part in images.float().split(batch)])


def fit_factors(
    images: Tensor, steps: int = 60, rate: float = 0.03, stranger: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Refit factors through the renderer: argmin_q mean |render(q) - image|^2, from the reader's q.

    Adam on q, each image on its own; the Stranger's presence is rounded to 0 or 1 from the reader,
    or given, and held.

    Args:
        images: (n, 3, 64, 64), in [-1, 1].
        steps: of Adam, >= 1.
        rate: its first rate; a cosine brings it down to a twentieth.
        stranger: presence (n,), 0 or 1.

    Returns: q (n, 13), the best met on the way, and the distance to the manifold (n,): the root
    mean square residual over pixels and channels, in image units of [-1, 1].
    Raises ValueError as `read_factors` does, and for steps < 1.
    Cost: n steps renders and their gradients.

    >>> from mathkit.show.reader import fit_factors
    >>> image = mk.puppets.render(mk.puppets.sample_factors(1, seed=0))
    >>> q, distance = fit_factors(image, steps=3)
    >>> bool(distance < 0.05)  # it lies on the manifold
    True
    """
    steps = integer(steps, "steps", 1)
    with torch.no_grad():
        start = read_factors(images)
    present = (start[:, STRANGER] > 0.5).float() if stranger is None else stranger.float()
    q = start.clone().clamp(0, 1)
    q[:, STRANGER] = present
    free = torch.ones(len(FACTORS), device=q.device)
    free[STRANGER] = 0.0
    best_q, best = q.clone(), torch.full((len(q),), torch.inf, device=q.device)
    q.requires_grad_(True)
    descent = torch.optim.Adam([q], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, steps, rate / 20)
    for _ in range(steps):
        residual = (puppets.render(q, images.shape[-1]) - images).square().mean((1, 2, 3))
        better = residual.detach() < best
        best_q = torch.where(better[:, None], q.detach(), best_q)
        best = torch.where(better, residual.detach(), best)
        (grad,) = torch.autograd.grad(residual.sum(), q)
        q.grad = grad * free
        descent.step()
        schedule.step()
    return best_q, best.sqrt()


def _check(images: Tensor) -> None:
    tensor(images, "images", "(n, 3, 64, 64)")
    if images.ndim != 4 or not len(images) or images.shape[1:] != (3, 64, 64):
        raise ValueError(
            f"expected images of shape (n, 3, 64, 64), got {tuple(images.shape)}; "
            "resize, or add the batch axis with image[None]"
        )
    if not torch.is_floating_point(images):
        raise ValueError(f"expected float images in [-1, 1], got {images.dtype}; use x / 127.5 - 1")
    if not images.isfinite().all():
        raise ValueError("images hold NaN or infinity")
    pictures(images, far=1.5)

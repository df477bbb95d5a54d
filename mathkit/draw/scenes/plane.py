"""Scenes of linear maps: a matrix in three acts, an ellipse felt by ALICE, the power method."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.transforms import Affine2D
from torch import Tensor

from mathkit.diffusion.encoder import encoder
from mathkit.diffusion.load import load_model
from mathkit.draw import acts
from mathkit.draw.scenes.scene import Scene, Stage, colours, eased, held, split
from mathkit.linear import metric
from mathkit.linear.arrays import matrix
from mathkit.linear.jacobian import jacobian
from mathkit.linear.linear_map import LinearMap
from mathkit.linear.svd import svd
from mathkit.show import puppets

SHEAR = torch.tensor([[1.0, 1.2], [0.0, 1.0]])
AROUND = np.linspace(0, 2 * math.pi, 181)
CIRCLE = np.stack([np.cos(AROUND), np.sin(AROUND)])


def rotate_stretch_rotate(M: Tensor | None = None, n: int = 180) -> Scene:
    """A real matrix M = U^T diag(S) V in three acts, each angle and factor from `mk.svd`.

    Args:
        M: (2, 2); default a shear.
        n: frames, >= 5.

    Returns: a scene with M, U, S, V and the matrix that has acted by then, stages (n, 2, 2).
    Raises ValueError for another shape.
    Cost: one SVD of four numbers.

    >>> from mathkit.draw import scenes
    >>> scene = scenes.rotate_stretch_rotate(n=9)
    >>> bool(np.allclose(scene["stages"][-1], scene["M"], atol=1e-5))
    True
    """
    M = SHEAR if M is None else M
    U, factors, V = found = acts.factors(M.double())
    still, first, stretch, second, end = split(n, 1, 3, 3, 3, 2)
    moves = [np.zeros(still), eased(first), 1 + eased(stretch), 2 + eased(second), np.full(end, 3)]
    stages = [acts.acted(found, at).numpy() for at in np.concatenate(moves).tolist()]
    a, b = (f"{x:.2f}" for x in factors.abs().tolist())
    words = held(
        ("a circle, and the two directions that will stay at a right angle", still),
        ("rotate: they become the axes", first),
        (f"stretch: by {a} along the one, by {b} along the other", stretch),
        ("rotate again", second),
        ("every matrix does only this", end),
    )
    arrays = {
        "M": M.numpy(), "U": U.numpy(), "S": factors.abs().numpy(), "V": V.numpy(),
        "stages": np.stack(stages), "face": colours(puppets.render(healthy(), size=160))[0],
    }  # fmt: skip
    return Scene("rotate", "Rotate, stretch, rotate", arrays, words, _draw_stages)


def turns(dials: tuple[str, str]) -> Tensor:
    """The directions (2, 13) of two dials. ValueError for names that are none."""
    if len(set(dials) & set(puppets.CONTINUOUS)) != 2 or len(dials) != 2:
        raise ValueError(f"dials are two of {', '.join(puppets.CONTINUOUS)}; got {dials}")
    return torch.eye(len(puppets.FACTORS))[[puppets.FACTORS.index(name) for name in dials]]


def healthy() -> Tensor:
    """The dials (1, 13) of chapter 06's puppet."""
    return puppets.sample_factors(16, seed=34, stranger=0)[1:2]


def _draw_stages(scene: Scene, stage: Stage) -> Callable[[int], None]:
    reach = 1.12 * max(1.0, float(scene["S"].max()))
    ax = stage.plane(stage.width / 2 - 2.85, 0.75, 5.7, reach)
    ax.plot(*CIRCLE, color=stage.grey, lw=2, ls="--")
    (image,) = ax.plot([], [], color=stage.ink, lw=4)
    pressed = _pressed(ax, scene["face"])
    arrows = [stage.arrow(ax, stage.accent), stage.arrow(ax, stage.blue)]
    names = ("v\u2081", "v\u2082")
    texts = [ax.text(0, 0, t, fontsize=22, ha="center", va="center", color=c, weight="bold")
             for t, c in zip(names, (stage.accent, stage.blue), strict=True)]  # fmt: skip

    def show(i: int) -> None:
        A = scene["stages"][i]
        image.set_data(*(A @ CIRCLE))
        pressed(A)
        for put, text, v in zip(arrows, texts, scene["V"], strict=True):
            tip = A @ v
            put((0, 0), tip)
            text.set_position(tip * (1 + 0.1 * reach / max(1e-9, np.hypot(*tip))))

    return show


def _pressed(ax: Axes, face: np.ndarray) -> Callable[[np.ndarray], None]:
    """The face in the unit circle, put where a matrix takes it."""
    side, limits = 0.5**0.5, (ax.get_xlim(), ax.get_ylim())
    picture = ax.imshow(face, extent=(-side, side, -side, side), zorder=1)
    ax.set(xlim=limits[0], ylim=limits[1])

    def put(A: np.ndarray) -> None:
        whole = np.eye(3)
        whole[:2, :2] = A
        picture.set_transform(Affine2D(whole) + ax.transData)

    return put


def ellipse(
    dials: tuple[str, str] = ("mouth_open", "nose_size"), t: int = 500, n: int = 240
) -> Scene:
    """Which mix of two dials ALICE feels most: the ellipse of J^T J, and a puppet pressed by it.

    J: the Jacobian of dials -> x_t -> summed h, at the puppet of chapter 06. G = E^T J^T J E on the
    two dials E; M with M^T M = G shows its lengths in a plane, |M c| = |J E c|, in
    units of the longest, s_1 = 1.

    Args:
        dials: two names of `mk.puppets.CONTINUOUS`.
        t: the noise level.
        n: frames, >= 5.

    Returns: a scene with G, M, U, S, V of M, angle (n,) of the mix, path (n, 2, 2) from I to M, and
    pictures: faces (180, 144, 144, 3) along the circle, face (160, 160, 3).
    Raises ValueError for names that are no dials.
    Cost: two pushes through the encoder, and 180 renders.

    >>> from mathkit.draw import scenes
    >>> scene = scenes.ellipse(n=6)
    >>> round(float(np.linalg.norm(scene["M"], 2)), 3)
    1.0
    """
    q, E = healthy(), turns(dials)
    G = metric.gram(felt(q, t), E).double()
    M = torch.linalg.cholesky(G).T
    M = M / torch.linalg.matrix_norm(M, 2)
    U, S, V = svd(matrix(M), 2)
    parts = split(n, 5, 1, 4, 3)
    longest = math.atan2(float(V[0, 1]), float(V[0, 0]))
    angle = np.concatenate([np.linspace(0, 2 * math.pi, sum(parts[:2])),
                            eased(parts[2]) * longest, np.full(parts[3], longest)])  # fmt: skip
    grow = np.concatenate([np.zeros(sum(parts[:2])), eased(parts[2]), np.ones(parts[3])])
    path = np.eye(2) + grow[:, None, None] * (M.numpy() - np.eye(2))
    mixes = torch.tensor(CIRCLE.T[:-1], dtype=torch.float32)
    arrays = {
        "G": G.numpy(), "M": M.numpy(), "U": U.numpy(), "S": S.numpy(), "V": V.numpy(),
        "angle": angle, "path": path, "dials": np.array(dials),
        "faces": colours(puppets.render(q + 0.35 * mixes @ E, size=144)),
        "face": colours(puppets.render(q, size=160))[0],
    }  # fmt: skip
    words = held(
        ("turn two dials at speed 1, in every mix", parts[0]),
        ("every mix has the same length here", parts[1]),
        ("and this is how long each looks to ALICE", parts[2]),
        (f"the longest is felt {S[0] / S[1]:.1f} times as much as the shortest", parts[3]),
    )
    return Scene("ellipse", "Which direction does ALICE feel most?", arrays, words, _draw_ellipse)


def felt(q: Tensor, t: int) -> LinearMap:
    """The Jacobian of dials -> noised frame -> summed h of ALICE, at the dials q (1, 13)."""
    p = load_model("alice", device="cpu")
    e = torch.randn(1, *p.shape, generator=torch.Generator().manual_seed(6))
    abar, h = float(p.alphas_cumprod[t]), encoder(p, t, pool="sum")
    return jacobian(lambda q: h(abar**0.5 * puppets.render(q) + (1 - abar) ** 0.5 * e), q)


def _draw_ellipse(scene: Scene, stage: Stage) -> Callable[[int], None]:
    gap = stage.width / 4
    left = stage.plane(gap - 2.7, 0.85, 5.4, 1.45, cross=False)
    right = stage.plane(3 * gap - 2.7, 0.85, 5.4, 1.45, cross=False)
    left.plot(*CIRCLE, color=stage.grey, lw=2.5)
    for (x, y), name in zip(((1.07, -0.03), (0, 1.17)), scene["dials"].tolist(), strict=True):
        name = name.replace("_", " ")
        left.text(
            x, y, name.split()[0], fontsize=18, color=stage.blue, ha="left" if x else "center"
        )
    puppet = left.imshow(scene["face"], extent=(-0.6, 0.6, -0.6, 0.6), zorder=1)
    left.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45))
    hand = stage.arrow(left, stage.accent)
    pressed = _pressed(right, scene["face"])
    right.plot(*CIRCLE, color=stage.grey, lw=2, ls="--")
    (ring,) = right.plot(*CIRCLE, color=stage.ink, lw=3.5, zorder=3)
    image, count = stage.arrow(right, stage.accent), len(scene["faces"])

    def show(i: int) -> None:
        a, A = float(scene["angle"][i]), scene["path"][i]
        v = np.array([math.cos(a), math.sin(a)])
        puppet.set_data(scene["faces"][round(a / (2 * math.pi) * count) % count])
        hand(0.62 * v, v)
        ring.set_data(*(A @ CIRCLE))
        pressed(A)
        image((0, 0), A @ v)

    return show


def power_method(M: Tensor | None = None, rounds: int = 6, n: int = 210) -> Scene:
    """Push, pull, normalise: a start turns towards v_1 until nothing changes.

    Args:
        M: (2, 2); default that of chapter 12.
        rounds: of the method.
        n: frames, >= 2 * rounds + 1.

    Returns: a scene with M, v_1, starts (rounds + 1, 2), M^T M of each, and per frame the arrow
    (n, 2), the matrix over which it lies, stage (n, 2, 2), and the angle to v_1 in degrees.
    Raises ValueError for another shape, and for a matrix of zeros.
    Cost: 2 rounds products.

    >>> from mathkit.draw import scenes
    >>> bool(scenes.power_method(n=30)["degrees"][-1] < 1)
    True
    """
    M = torch.tensor([[4.0, 1.0], [1.0, 3.0]]) if M is None else M
    if M.shape != (2, 2):
        raise ValueError(f"power_method takes a matrix (2, 2), got {tuple(M.shape)}")
    if not M.any():
        raise ValueError("power_method takes a matrix that stretches something, got zeros")
    B = M.double().numpy()
    v1 = svd(matrix(M.double()), 2).V[0].numpy()
    start = 0.97 * np.array([-v1[1], v1[0]]) + 0.24 * v1
    starts = [start / np.hypot(*start)]
    words: list[str] = []
    for _ in range(rounds):
        w = B.T @ (B @ starts[-1])
        starts.append(w / np.hypot(*w))
    moves, arrows, grounds = split(n, *([1] * (2 * rounds)), 2), [], []
    size = float(np.linalg.norm(B, 2)) ** 2
    for r, (v, after) in enumerate(zip(starts, starts[1:], strict=False)):
        push, pull = moves[2 * r : 2 * r + 2]
        for s in eased(push):  # the plane is stretched by M^T M, on a scale of its own
            A = (1 - s) * np.eye(2) + s * (B.T @ B) / size
            arrows.append(A @ v)
            grounds.append(A)
        for s in eased(pull):
            long = (1 - s) * np.hypot(*(B.T @ B @ v)) / size + s
            arrows.append(after * long)
            grounds.append((1 - s) * (B.T @ B) / size + s * np.eye(2))
        words += held((f"round {r + 1}: push and pull", push), ("normalise", pull))
    arrows += [starts[-1]] * moves[-1]
    grounds += [np.eye(2)] * moves[-1]
    words += held(("nothing changes any more: this is v\u2081", moves[-1]))
    path = np.stack(arrows)
    cosine = abs(path @ v1) / np.hypot(*path.T)
    arrays = {
        "M": B, "v1": v1, "starts": np.stack(starts), "arrow": path, "stage": np.stack(grounds),
        "degrees": np.rad2deg(np.arccos(cosine.clip(0, 1))),
    }  # fmt: skip
    return Scene("power", "The power method", arrays, tuple(words), _draw_power)


def _draw_power(scene: Scene, stage: Stage) -> Callable[[int], None]:
    ax = stage.plane(0.55, 0.8, 5.6, 1.2)
    ax.plot(*CIRCLE, color=stage.faint, lw=2)
    (ring,) = ax.plot([], [], color=stage.ink, lw=3)
    ax.plot(*np.stack([-1.2 * scene["v1"], 1.2 * scene["v1"]]).T, color=stage.blue, lw=3, ls=":")
    x, y = 1.1 * scene["v1"]
    ax.text(x + 0.02, y - 0.14, "v\u2081", fontsize=22, color=stage.blue)
    put = stage.arrow(ax, stage.accent)
    most = float(scene["degrees"].max())
    chart = stage.chart(7.3, 1.35, stage.width - 8.0, 4.4, xlim=(0, len(scene)), ylim=(0, most),
                        xticks=[], yticks=[0, 30, 60], xlabel="time")  # fmt: skip
    chart.set_title("degrees from v\u2081", fontsize=18, loc="left")
    (line,) = chart.plot([], [], color=stage.accent, lw=4)

    def show(i: int) -> None:
        put((0, 0), scene["arrow"][i])
        ring.set_data(*(scene["stage"][i] @ CIRCLE))
        line.set_data(np.arange(i + 1), scene["degrees"][: i + 1])

    return show

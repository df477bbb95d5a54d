"""Edits of x_t along a direction, and of h while denoising."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mathkit.arguments import integer, number, tensor
from mathkit.diffusion.encoder import At, Map, bottleneck, encoder, replacing
from mathkit.diffusion.levels import Time
from mathkit.diffusion.model import Model, check_model
from mathkit.linear.jacobian import jacobian
from mathkit.linear.subspaces import LIFTS, carry
from mathkit.linear.svd import svd

PARALLEL = 1e-3  # a unit v with less than this across x_t leads nowhere on the sphere


def move(p: Model, xt: Tensor, t: int, v: Tensor, strength: float, steps: int) -> Tensor:
    """Move x_t along v with its norm kept, by points of the great circle through x_t and v.

    x = cos(a) x_t + sin(a) |x_t| w, w the unit part of v orthogonal to x_t, with
    |x - x_t| = |strength| |x_t| i / steps at [i]. (Every x <- |x_t| normalise(x + d v) lies there.)

    Args:
        p: the model.
        xt: x_t (B, *in).
        t: its time.
        v: a direction (*in), or one for each item (B, *in); of any length > 0.
        strength: the signed length reached, in units of |x_t|; at most 2, the other side of the
            sphere.
        steps: of the way, >= 1.

    Returns: the way, (steps + 1, B, *in), x_t first.
    Raises ValueError for v = 0 or parallel to x_t, and strength or steps outside their ranges.
    Cost: no network call.
    Source: the plain edit of 2307.12868, with lengths told.

    >>> p = mk.load_model("alice")
    >>> xt, v = torch.ones(1, *p.shape), torch.zeros(p.shape)
    >>> v[0] = 1.0
    >>> way = mk.move(p, xt, 500, v, 0.1, 2)
    >>> [round(float((x - xt).norm() / xt.norm()), 3) for x in way]
    [0.0, 0.05, 0.1]
    """
    _check(p, xt, t)
    return great_circle(xt, v, strength, steps)


def great_circle(xt: Tensor, v: Tensor, strength: float, steps: int) -> Tensor:
    """`move` without a model: the points x of the great circle through x_t and v."""
    v, size, lengths = _unit(xt, v), _norm(xt), _lengths(strength, steps, 2.0)
    if not float(size.min()) > 0:
        raise ValueError("x_t is zero: there is no norm to keep")
    across = v - _dot(v, xt) / size**2 * xt
    if float(_norm(across).min()) < PARALLEL:
        raise ValueError("v is parallel to x_t: with the norm kept there is nowhere to move")
    w = across / _norm(across)
    angles = [2 * math.asin(s / 2) for s in lengths]
    return torch.stack([(math.cos(a) * xt + math.sin(a) * size * w).to(xt) for a in angles])


def guide(p: Model, xt: Tensor, t: int, v: Tensor, strength: float, steps: int) -> Tensor:
    """x-space guidance: x <- x + gamma [eps(x + v, t) - eps(x, t)], v of length 1.

    To first order this moves along J_eps v, which damps or reverses what the model takes for image,
    so gamma says little. Here it is chosen at each step, and for each item, so that
    |x - x_t| = |strength| |x_t| i / steps at [i], and its sign once so that the first step goes to
    +v for strength > 0: sign(gamma) = sign(strength kappa), kappa = <v, J_eps v> (see `response`:
    where it is negative the published rule, gamma > 0, goes the other way). The norm is free.

    Args:
        p: the model.
        xt: x_t (B, *in).
        t: its time.
        v: a direction (*in), or one for each item (B, *in); of any length > 0.
        strength: the signed length reached, in units of |x_t|.
        steps: of the way, >= 1.

    Returns: the way, (steps + 1, B, *in), x_t first.
    Raises ValueError where eps does not change along v, or for a bad x_t, t, v, strength or steps.
    Cost: 2 B steps network calls.
    Source: 2307.12868.

    >>> p = mk.load_model("alice")
    >>> xt = mk.diffusion.sampling.start(p, 0, [0])
    >>> mk.guide(p, xt, 999, xt[0].roll(1), 0.1, 1).shape
    torch.Size([2, 1, 3, 64, 64])
    """
    _check(p, xt, t)
    v, size, lengths = _unit(xt, v), _norm(xt), _lengths(strength, steps)
    path, e, way = [xt], torch.zeros_like(xt), None
    for s in lengths[1:]:
        d = _change(p, (xt + e).to(xt), t, v)
        way = _sign(_dot(d, v)) * math.copysign(1.0, strength) if way is None else way
        e = _to_sphere(e, way * d / _norm(d), abs(s) * size)
        path.append((xt + e).to(xt))
    return torch.stack(path)


def shoot(
    p: Model,
    xt: Tensor,
    t: int,
    v: Tensor,
    strength: float,
    steps: int,
    k: int,
    lift: str = "isometry",
    f: Map | None = None,
) -> Tensor:
    """Geodesic shooting with re-projection: x <- x + c v, v carried on each time.

    After every step the direction's image u is projected on the span of the new point's top k left
    singular vectors of f and lifted back by `mk.transport`'s rule. c is such that
    |x - x_t| = |strength| |x_t| i / steps at [i]; the norm is free. v starts as it is given, with
    u = J v / |J v|.

    Args:
        p: the model.
        xt: x_t (B, *in).
        t: its time.
        v: a direction (*in), or one for each item (B, *in); of any length > 0.
        strength: the signed length reached, in units of |x_t|.
        steps: of the way, >= 1.
        k: singular vectors of each point.
        lift: "isometry" as published, or "pinv", which follows the geodesic of the pulled-back
            metric (the lift of a straight line in h).
        f: the map, default `mk.encoder(p, t)`.

    Returns: the way, (steps + 1, B, *in), x_t first.
    Raises ValueError for another lift, v = 0 or of other shape, k < 1, steps < 1, or where nothing
    of u is left.
    Cost: for each item and step after the first one `mk.svd` of rank k.
    Source: 2302.12469.

    >>> p = mk.load_model("alice")
    >>> xt = mk.diffusion.sampling.start(p, 0, [0])
    >>> mk.shoot(p, xt, 999, xt[0].roll(1), 0.1, 1, k=3).shape
    torch.Size([2, 1, 3, 64, 64])
    """
    _check(p, xt, t)
    return geodesic(encoder(p, t) if f is None else f, xt, v, strength, steps, k, lift)


def geodesic(
    f: Map, xt: Tensor, v: Tensor, strength: float, steps: int, k: int, lift: str = "isometry"
) -> Tensor:
    """`shoot` without a model: through the pulled-back metric of any map f."""
    if lift not in LIFTS:
        raise ValueError(f"lift is {' or '.join(LIFTS)}, got {lift!r}")
    k, lengths = integer(k, "k", 1), _lengths(strength, steps)
    v = _unit(xt, v) * math.copysign(1.0, strength)
    paths = [
        _shot(f, x[None], w[None], [abs(s) for s in lengths], k, lift)
        for x, w in zip(xt, v, strict=True)
    ]
    return torch.cat(paths, 1)


def _shot(f: Map, xt: Tensor, v: Tensor, lengths: Sequence[float], k: int, lift: str) -> Tensor:
    size, e = _norm(xt), torch.zeros_like(xt)
    u = jacobian(f, xt).push(v)
    path = [xt]
    for i, s in enumerate(lengths[1:]):
        if i:
            r = svd(jacobian(f, path[-1]), k)
            v, u = (item[None] for item in carry(u[0], r, lift))
        e = _to_sphere(e, v, s * size)
        path.append((xt + e).to(xt))
    return torch.stack(path)


def normalise(
    p: Model, y: Tensor, t: int, like: Tensor, kappa: float = 0.99, channels: bool = False
) -> Tensor:
    """The artifact normalisation: an edited y that keeps the statistics of the unedited posterior
    mean.

    E' is the posterior mean of y with the mean and the standard deviation, over all pixels, of E,
    the posterior mean of `like`; y' = like + s (E' - E) / (1 - kappa n), s and n the levels of t,
    which solves E(y') = E' to first order where the derivative of eps is kappa times the identity.
    It is not: the published kappa = .99 inflates the step where s is small.

    Args:
        p: the model.
        y: edited (..., *in) at t, as the edits give it.
        t: the time.
        like: the unedited x_t (B, *in).
        kappa: in [0, 1].
        channels: statistics of each channel apart.

    Returns: y', of y's shape.
    Raises ValueError on other shapes, a model of what is no picture, NaN, kappa outside its range,
    or a flat posterior mean.
    Cost: one network call an item.
    Source: eq. 4 of 2302.12469.

    >>> p = mk.load_model("alice")
    >>> xt = mk.diffusion.sampling.start(p, 0, [0])
    >>> mk.normalise(p, mk.move(p, xt, 999, xt[0].roll(1), 0.1, 1), 999, like=xt).shape
    torch.Size([2, 1, 3, 64, 64])
    """
    _check(p, like, t, "like")
    if like.ndim != 4:
        raise ValueError(f"normalise takes pictures (B, C, H, W), got {tuple(like.shape)}")
    shape = f"(..., {', '.join(map(str, like.shape))})"
    same = tensor(y, "y", shape).shape[y.ndim - like.ndim + 1 :] == like.shape[1:]
    if not same or y[..., 0, 0, 0].numel() % len(like):
        raise ValueError(f"y is {shape}, got {tuple(y.shape)}")
    kappa = number(kappa, "kappa", 0, 1)
    s, n = p.levels.pair(p.time(t))
    flat = p.check(y.reshape(-1, *like.shape[1:]), "y")
    with torch.no_grad():
        old = p.chunked(like, lambda part, _: p.clean(part, t))
        new = p.chunked(flat, lambda part, _: p.clean(part, t))
    places = (-2, -1) if channels else (-3, -2, -1)
    target, found = old.repeat(len(flat) // len(old), 1, 1, 1), new.std(places, keepdim=True)
    if not float(found.min()) > 0:
        raise ValueError("the posterior mean of y is flat: its statistics cannot be restored")
    restored = (new - new.mean(places, keepdim=True)) / found
    restored = restored * target.std(places, keepdim=True) + target.mean(places, keepdim=True)
    step = s * (restored - target) / (1 - kappa * n)
    return (like.repeat(len(flat) // len(like), 1, 1, 1) + step).reshape(y.shape)


def response(p: Model, xt: Tensor, t: int, v: Tensor) -> Tensor:
    """<v, eps(x_t + v, t) - eps(x_t, t)> for v of length 1, near <v, J_eps v>.

    Args:
        p: the model.
        xt: x_t (B, *in).
        t: its time.
        v: a direction, as in `mk.move`.

    Returns: (B,): 1 where the model takes v for noise, below where it takes it for image, negative
    where it pushes away from between two modes.
    Raises as `mk.guide` does.
    Cost: 2 B network calls.

    >>> p = mk.diffusion.gaussian.GaussianModel(torch.zeros(2), torch.zeros(2, 2))  # all is noise
    >>> r = mk.diffusion.edits.response(p, torch.ones(1, 2), 999, torch.tensor([1.0, 0.0]))
    >>> round(float(r), 3)
    1.0
    """
    _check(p, xt, t)
    v = _unit(xt, v)
    return _dot(_change(p, xt, t, v), v).flatten()


def _change(p: Model, x: Tensor, t: int, v: Tensor) -> Tensor:
    d = p.chunked(x, lambda part, rows: p.noise(part + v[rows], t) - p.noise(part, t))
    if not float(_norm(d).min()) > 0:
        raise ValueError("eps does not change along v: guidance has no direction to go")
    return d


def _to_sphere(e: Tensor, d: Tensor, radius: Tensor) -> Tensor:
    """e + c d, c >= 0, with |e + c d| = radius >= |e|, for unit d."""
    along = _dot(e, d)
    return e + ((along**2 + radius**2 - _norm(e) ** 2).clamp_min(0).sqrt() - along) * d


@dataclass(frozen=True)
class Injection:
    """An edit of h while denoising, made by `inject`; `mk.denoise(..., h_edit=)` takes it."""

    dh: Tensor | Map
    t_from: Time
    t_to: Time
    strength: float
    at: At = None

    def active(self, t: Time) -> bool:
        return self.t_to <= t <= self.t_from

    def __call__(self, p: Model, x: Tensor, t: Time) -> Tensor:
        """eps(x_t, t) with h + strength dh for h."""
        block, dh = bottleneck(p, self.at), self.dh
        each = isinstance(dh, Tensor) and dh.ndim == x.ndim
        if each and isinstance(dh, Tensor) and len(dh) != len(x):
            raise ValueError(
                f"dh is (*h), or one such for each item: it has {len(dh)}, x_t {len(x)}"
            )

        def edited(part: Tensor, rows: slice) -> Tensor:
            step = dh[rows] if each and isinstance(dh, Tensor) else dh
            with replacing(block, lambda h: h + self.strength * _injected_step(step, h)):
                return p.noise(part, t)

        return p.chunked(x, edited)


def _injected_step(dh: Tensor | Map, h: Tensor) -> Tensor:
    if not isinstance(dh, Tensor):
        return dh(h)
    if dh.shape not in (h.shape, h.shape[1:]):
        raise ValueError(
            f"dh is {tuple(h.shape[1:])}, or one such for each item, got {tuple(dh.shape)}"
        )
    return dh.to(h)


def inject(dh: Tensor | Map, t_from: Time, t_to: Time, strength: float, at: At = None) -> Injection:
    """The edit h <- h + strength dh at every step with t_to <= t <= t_from, for `mk.denoise`.

    The reverse process is asymmetric: the edited network gives the predicted x_0, the unedited one
    the direction that points back to x_t; edited alike, the two would nearly cancel.

    Args:
        dh: (*h) or (B, *h), or a function h -> dh (so "scale channel j by 1 - s" is dh = -h at j).
        t_from: the first time at which it acts, >= t_to.
        t_to: the last.
        strength: a number.
        at: where h is, as for `mk.encoder`.

    Returns: an `Injection`, for h_edit.
    Raises ValueError for NaN, t_from < t_to or a dh that is not of h's shape (when used).
    Cost: one more network call at each such step.
    Source: Asyrp, 2210.10960.

    >>> p = mk.load_model("alice")
    >>> off = mk.inject(lambda h: -h, 999, 500, 1.0)  # no h at all, in the first half
    >>> mk.denoise(p, mk.diffusion.sampling.start(p, 0, [0]), 999, 2, h_edit=off).shape
    torch.Size([1, 3, 64, 64])
    """
    t_from, t_to = number(t_from, "t_from", 0), number(t_to, "t_to", 0)
    if t_to > t_from:
        raise ValueError(f"time runs down: expected t_from >= t_to >= 0, got {t_from:g}, {t_to:g}")
    if not callable(dh) and not bool(tensor(dh, "dh", "(*h), or a function of h").isfinite().all()):
        raise ValueError("dh holds NaN or infinity")
    return Injection(dh, t_from, t_to, number(strength, "strength"), at)


def h_step(p: Model, xt: Tensor, t: int, v: Tensor, at: At = None) -> Tensor:
    """The change of h, as long as h, to which moving x_t along v leads: |h| J v / |J v|.

    J is the Jacobian of x_t (1, *in) -> h (1, *h), v (*in) or (1, *in). Cost: one pass and half a
    network call.
    """
    f = encoder(p, t, at=at)
    u = jacobian(f, xt).push(v.reshape(xt.shape))
    with torch.no_grad():
        return u / u.norm() * f(xt).norm()


def _check(p: Model, xt: Tensor, t: int, name: str = "x_t") -> None:
    check_model(p)
    p.check(xt, name), p.time(t)


def _unit(xt: Tensor, v: Tensor) -> Tensor:
    """v as (B, *in), of length 1."""
    shape = f"{tuple(xt.shape[1:])} or {tuple(xt.shape)}"
    if tensor(v, "v", shape).shape not in (xt.shape[1:], (1, *xt.shape[1:]), xt.shape):
        raise ValueError(f"v is {shape}, got {tuple(v.shape)}")
    v = v.to(xt).expand_as(xt)
    size = _norm(v)
    if not bool(size.isfinite().all()) or not float(size.min()) > 0:
        raise ValueError("v is zero, or holds NaN or infinity: a direction has a length")
    return (v / size).to(xt)


def _lengths(strength: float, steps: int, most: float = math.inf) -> list[float]:
    """0 ... strength in `steps` equal parts."""
    strength = number(strength, "strength, in units of |x_t|,", -most, most)
    steps = integer(steps, "steps", 1)
    return [strength * i / steps for i in range(steps + 1)]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """<a_i, b_i> of each item, shaped to multiply a; in float32 at least, for |x_t|^2 of a large
    picture is more than float16 holds."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    return (a.to(dtype) * b.to(dtype)).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))


def _norm(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt()


def _sign(a: Tensor) -> Tensor:
    return torch.where(a < 0, -1.0, 1.0).to(a)


def paths_between(
    f: Map, x: Tensor, y: Tensor, segments: int, k: int
) -> tuple[dict[str, Tensor], float]:
    """Three ways from x to y, each (1, *in): name -> (segments + 1, *in), and shooting's miss.

    "lerp": x + a (y - x). "slerp": the great circle, norms interpolated. "shooting": `geodesic`
    with the direction of x whose image points to f(y), as far as the top k allow, over the length
    |y - x|; it does not arrive, miss = |end - y| / |y - x|. Cost: `segments` `svd`s of rank k.
    """
    a = torch.linspace(0, 1, segments + 1, dtype=x.dtype).to(x).view(-1, *[1] * (x.ndim - 1))
    size = [float(z.norm()) for z in (x, y)]
    angle = math.acos(max(-1.0, min(1.0, float((x * y).sum()) / (size[0] * size[1]))))
    if not 1e-4 < angle < math.pi - 1e-4:
        raise ValueError(f"x and y at an angle of {angle:.1e}: no great circle between them")
    along = ((1 - a) * angle).sin() * x / size[0] + (a * angle).sin() * y / size[1]
    slerp = along / math.sin(angle) * ((1 - a) * size[0] + a * size[1])
    with torch.no_grad():
        wanted = f(y) - f(x)
    v = carry(wanted[0], svd(jacobian(f, x), k), "pinv")[0][None]
    far = float((y - x).norm()) / size[0]
    shot = geodesic(f, x, v, far, segments, k)[:, 0]
    miss = float((shot[-1] - y[0]).norm() / (y - x).norm())
    return {"lerp": x + a * (y - x), "slerp": slerp, "shooting": shot}, miss

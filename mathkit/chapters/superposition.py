"""Toy models of superposition: n sparse features squeezed through m < n neurons, and out again.

x' = ReLU(W^T W x + b), W (m, n), trained by least squares; column w_i is where feature i lives.
Many instances train at once, each with its own importance and density. Source: Elhage et al. 2022,
"Toy Models of Superposition".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mathkit.arguments import tensor

KINDS = ("relu", "linear", "hidden", "abs")
SETS = ("correlated", "anticorrelated")
CACHE = 2**18  # numbers of one batch that a core keeps at hand: larger lots of instances are slower
IDEAL = {"3/4": 3 / 4, "2/3": 2 / 3, "1/2": 1 / 2, "2/5": 2 / 5, "3/8": 3 / 8}


@dataclass(frozen=True, eq=False)
class Features:
    """The law of n sparse features, for N instances: x_i is 0, or with probability p_i uniform.

    Args:
        density: (N, n), p_i in (0, 1], every feature's own probability.
        sets: None, or features come in `sets` of `size` neighbours, "correlated" (on together,
            values independent) or "anticorrelated" (never two on; size * p <= 1).
        size: of a set, >= 2.
        signed: uniform on [-1, 1] rather than [0, 1].

    Raises ValueError for a density outside its range, or unequal within a set.
    Source: Elhage et al. 2022, Toy Models of Superposition.

    >>> from mathkit.chapters import superposition as sp
    >>> x = sp.Features(torch.full((1, 5), 0.1)).draw(1000, torch.Generator().manual_seed(0))
    >>> x.shape, bool(0.05 < (x > 0).float().mean() < 0.15)
    (torch.Size([1, 5, 1000]), True)
    """

    density: Tensor
    sets: str | None = None
    size: int = 1
    signed: bool = False

    def __post_init__(self) -> None:
        p = self.density
        if tensor(p, "density", "(N, n)").ndim != 2 or not bool(((p > 0) & (p <= 1)).all()):
            raise ValueError(
                f"density is (N, n) in (0, 1], got {tuple(p.shape)}, {p.min():g} to {p.max():g}"
            )
        if self.sets is None:
            return
        if self.sets not in SETS or self.size < 2 or p.shape[1] % self.size:
            raise ValueError(
                f"sets is one of {', '.join(SETS)}, of a size >= 2 that divides n = {p.shape[1]}, "
                f"got {self.sets!r} of {self.size}"
            )
        rows = p.unflatten(1, (-1, self.size))
        if bool((rows != rows[..., :1]).any()):
            raise ValueError("features of one set share one density, got unequal ones")
        if self.sets == "anticorrelated" and float(p.max()) * self.size > 1:
            raise ValueError(
                f"{self.size} features that are never on together need {self.size} p <= 1, "
                f"got p = {p.max():g}"
            )

    def __getitem__(self, at: Tensor | slice) -> Features:
        return replace(self, density=self.density[at])

    def draw(self, count: int, random: torch.Generator) -> Tensor:
        """x (N, n, count). All instances are cut from the same uniform numbers u (n, count):
        x_i = 1 - u_i / p_i where that is positive, so that instances differ by density alone."""
        p = self.density[..., None]
        n = p.shape[1]
        if self.sets is None:
            u = torch.rand(n, count, generator=random, device=p.device)
            x = (1 - u / p).clamp_min_(0)
        else:
            u = torch.rand(n // self.size, count, generator=random, device=p.device)
            u = u.repeat_interleave(self.size, 0)
            if self.sets == "correlated":
                value = 1 - torch.rand(n, count, generator=random, device=p.device)
                x = value * (u < p)
            else:
                turn = torch.arange(n, device=p.device)[:, None] % self.size
                x = (turn + 1 - u / p) * ((u >= turn * p) & (u < (turn + 1) * p))
        return torch.where(x > 0, 2 * x - 1, x) if self.signed else x


@dataclass(frozen=True, eq=False)
class Toys:
    """N trained instances: W (N, m, n), b (N, n); back (N, n, m) where the way out is its own.

    kind: "relu" x' = ReLU(W^T W x + b); "linear" without the ReLU; "hidden" x' = ReLU(W^T
    ReLU(W x) + b); "abs" x' = ReLU(W_back ReLU(W x) + b), whose target is |x|. path: the instances
    as they were at each recorded step.
    """

    kind: str
    W: Tensor
    b: Tensor
    back: Tensor | None = None
    path: list[Toys] = field(default_factory=list)

    def __call__(self, x: Tensor) -> Tensor:
        """x' for x (N, n, count), or (n, count) shared by all."""
        return _output(self.kind, self.W, self.b, self.back, x.expand(len(self.W), -1, -1))

    def loss(
        self,
        features: Features,
        importance: Tensor | float = 1.0,
        *,
        count: int = 65_536,
        seed: int = 1,
    ) -> Tensor:
        """L = sum_i I_i E (x_i - x'_i)^2 of each instance on fresh draws, (N,).

        count: how many, rounded up to lots of 4,096.
        """
        weight = _each(importance, features.density)
        parts = []
        for at in _lots(features.density, 4096):
            random = torch.Generator(self.W.device).manual_seed(-1 - seed)
            law, toys, total = features[at], self[at], torch.zeros((), dtype=torch.float64)
            for _ in range(-(-count // 4096)):
                x = law.draw(4096, random)
                total = total + _loss(toys(x), _target(self.kind, x), weight[at]).double()
            parts.append(total / -(-count // 4096))
        return torch.cat(parts).float()

    def best(self, loss: Tensor, groups: int) -> Toys:
        """Of N = groups * tries instances, tries next to each other, the best of each group."""
        at = loss.view(groups, -1).argmin(1) + torch.arange(groups, device=loss.device) * (
            len(loss) // groups
        )
        return self[at]

    def still(self) -> Toys:
        """A copy of the weights as they are, without graph or path."""
        back = None if self.back is None else self.back.detach().clone()
        return Toys(self.kind, self.W.detach().clone(), self.b.detach().clone(), back)

    def __getitem__(self, at: Tensor | slice) -> Toys:
        back = None if self.back is None else self.back[at]
        return Toys(self.kind, self.W[at], self.b[at], back, [p[at] for p in self.path])


def _output(kind: str, W: Tensor, b: Tensor, back: Tensor | None, x: Tensor) -> Tensor:
    h = W @ x
    if kind in ("hidden", "abs"):
        h = h.relu()
    y = torch.baddbmm(b[..., None], W.mT if back is None else back, h)
    return y if kind == "linear" else y.relu()


def _target(kind: str, x: Tensor) -> Tensor:
    return x.abs() if kind == "abs" else x


def _loss(y: Tensor, x: Tensor, importance: Tensor | float) -> Tensor:
    d = y - x
    return (torch.linalg.vecdot(d, d) * importance).sum(1) / x.shape[-1]


def train(
    features: Features,
    m: int,
    importance: Tensor | float = 1.0,
    kind: str = "relu",
    *,
    steps: int = 10_000,
    batch: int = 1024,
    lr: float = 1e-3,
    anneal: bool = False,
    seed: int = 0,
    starts: Sequence[int] | None = None,
    begin: Toys | None = None,
    record: Collection[int] = (),
    progress: bool = False,
) -> Toys:
    """Train N instances at once from Xavier normal weights, by AdamW (weight decay .01).

    Instance j depends on (seed, starts[j]) and on its own law alone: weights are drawn from (seed,
    start), and the data from the seed, so that alone or among a thousand it goes the same way but
    for rounding. Runs on the device of features.density; a GPU draws other numbers.

    Args:
        features: the law, of N instances.
        m: neurons, >= 1.
        importance: I_i >= 0, broadcast to (N, n).
        kind: "relu", "linear", "hidden" or "abs", see `Toys`.
        steps: of the descent.
        batch: samples a step.
        lr: learning rate.
        anneal: lr falls to 0 by a cosine.
        seed: of weights and data.
        starts: one integer each, default 0 for all.
        begin: weights to start from instead.
        record: steps after which the path keeps a copy (0: before the first).
        progress: show a bar.

    Returns: `Toys`, N instances.
    Raises ValueError for another kind, m < 1, or starts that do not fit.
    Cost: 5 batched products of W with (n, batch) a step and instance.
    Source: Elhage et al. 2022, Toy Models of Superposition.

    >>> from mathkit.chapters import superposition as sp
    >>> sp.train(sp.Features(torch.full((3, 5), 0.1)), 2, steps=2).W.shape
    torch.Size([3, 2, 5])
    """
    from tqdm.auto import tqdm

    if kind not in KINDS or m < 1 or steps < 1 or batch < 1:
        raise ValueError(
            f"kind is one of {', '.join(KINDS)}, m, steps and batch >= 1, "
            f"got {kind!r}, {m}, {steps}, {batch}"
        )
    N, n = features.density.shape
    if begin is None:
        begin = _begin(kind, n, m, seed, [0] * N if starts is None else list(starts))
    if begin.W.shape != (N, m, n) or begin.kind != kind:
        raise ValueError(
            f"{N} instances of {kind!r}, {n} to {m}, begin with W {(N, m, n)}, "
            f"got {begin.kind!r}, {tuple(begin.W.shape)}"
        )
    weight, lots = _each(importance, features.density), _lots(features.density, batch)
    pace = _Pace(steps, batch, lr, anneal, seed, record)
    with tqdm(total=len(lots) * steps, desc="toys", mininterval=1, disable=not progress) as bar:
        return _together(
            [_descend(begin[at], features[at], weight[at], pace, bar.update) for at in lots]
        )


@dataclass(frozen=True)
class _Pace:
    """What all lots of one `train` share."""

    steps: int
    batch: int
    lr: float
    anneal: bool
    seed: int
    record: Collection[int]


def _descend(
    begin: Toys, law: Features, weight: Tensor, pace: _Pace, tick: Callable[[], object]
) -> Toys:
    """`train` of one lot; tick is called after every step."""
    device = law.density.device
    found = [
        w.detach().clone().to(device).requires_grad_()
        for w in (begin.W, begin.b, begin.back)
        if w is not None
    ]
    now = Toys(begin.kind, found[0], found[1], found[2] if len(found) > 2 else None)
    step = torch.optim.AdamW(found, lr=pace.lr, fused=True)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(step, pace.steps) if pace.anneal else None
    random = torch.Generator(device).manual_seed(pace.seed)
    path = []
    for i in range(pace.steps):
        if i in pace.record:
            path.append(now.still())
        x = law.draw(pace.batch, random)
        step.zero_grad()
        _loss(now(x), _target(now.kind, x), weight).sum().backward()
        step.step()
        if slower:
            slower.step()
        tick()
    last = now.still()
    return replace(last, path=path + ([last] if pace.steps in pace.record else []))


def _each(importance: Tensor | float, like: Tensor) -> Tensor:
    """Importance as (N, n)."""
    return torch.as_tensor(importance, dtype=like.dtype, device=like.device).expand(like.shape)


def _lots(like: Tensor, batch: int) -> list[slice]:
    """Lots of instances that fit the cache; on a GPU one lot."""
    N, n = like.shape
    lot = max(1, CACHE // (n * batch)) if like.device.type == "cpu" else N
    return [slice(i, i + lot) for i in range(0, N, lot)]


def _together(parts: Sequence[Toys]) -> Toys:
    """Lots put back in one, paths too."""
    first = parts[0]
    back = None if first.back is None else torch.cat([p.back for p in parts if p.back is not None])
    path = [_together(same) for same in zip(*(p.path for p in parts), strict=True)]
    return Toys(
        first.kind, torch.cat([p.W for p in parts]), torch.cat([p.b for p in parts]), back, path
    )


def _begin(kind: str, n: int, m: int, seed: int, starts: Sequence[int]) -> Toys:
    """Xavier normal weights of each start, biases 0."""
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for start in set(starts):
        random = torch.Generator().manual_seed((seed + 1) * 1_000_003 + start)
        std = (2 / (n + m)) ** 0.5
        made[start] = (
            std * torch.randn(m, n, generator=random),
            std * torch.randn(n, m, generator=random),
        )
    W, back = (torch.stack([made[s][i] for s in starts]) for i in (0, 1))
    return Toys(kind, W, torch.zeros(len(starts), n), back if kind == "abs" else None)


def dimensions_per_feature(W: Tensor) -> Tensor:
    """D* = m / |W|_F^2 of W (..., m, n): neurons spent on each represented feature, (...)."""
    return W.shape[-2] / W.square().sum((-2, -1))


def dimensionality(W: Tensor) -> Tensor:
    """D_i = |w_i|^2 / sum_j (w_i/|w_i| . w_j)^2, the share of a dimension that feature i has to
    itself.

    The sum over i is at most m, and m for a tight frame, W W^T = c 1.

    Args:
        W: (..., m, n), a column w_i for each feature.

    Returns: (..., n), in [0, 1]; 0 for w_i = 0.
    Source: Elhage et al. 2022, Toy Models of Superposition.

    >>> from mathkit.chapters import superposition as sp
    >>> sp.dimensionality(torch.tensor([[1.0, -1.0]]))  # two features share one neuron
    tensor([0.5000, 0.5000])
    """
    norm = torch.linalg.vector_norm(W, dim=-2)
    unit = W / norm.clamp_min(1e-12)[..., None, :]
    crowd = (unit.mT @ W).square().sum(-1)
    return norm.square() / crowd.clamp_min(1e-24)


def lines(D: Tensor, width: float = 0.005, apart: float = 0.0125) -> dict[str, tuple[int, int]]:
    """Fraction -> (features within width of it, most of those within width of apart to a side).

    The statistic behind "features sit on lines": a line stands at a fraction of IDEAL when the
    first number is at least 10 and at least twice the second.
    """

    def near(value: float) -> int:
        return int(((D - value).abs() <= width).sum())

    return {k: (near(f), max(near(f - apart), near(f + apart))) for k, f in IDEAL.items()}


def dropped(W: Tensor) -> tuple[Tensor, Tensor]:
    """Which configuration W (..., n-1, n) is in, told by the direction that it forgets.

    The unit vector z with W z = 0 is compared with e_i ("feature i is dropped") and with
    (e_i + e_j) / sqrt 2 ("i and j are antipodal"). Returns (i, j), each (...): i = j if dropped.
    """
    m, n = W.shape[-2:]
    if n != m + 1:
        raise ValueError(f"W is (..., n - 1, n), it forgets one direction; got {m} by {n}")
    z = torch.linalg.svd(W, full_matrices=True).Vh[..., -1, :]
    pairs = torch.tensor([(i, j) for i in range(n) for j in range(i, n)], device=W.device)
    unit = torch.nn.functional.normalize(torch.eye(n, device=W.device)[pairs].sum(1).to(W), dim=-1)
    found = pairs[(z @ unit.T).abs().argmax(-1)]
    return found[..., 0], found[..., 1]


def attack(
    toys: Toys, features: Features, *, eps: float = 0.1, count: int = 512, seed: int = 1
) -> Tensor:
    """Mean rise of sum_i (x_i - x'_i)^2 under the best of n attacks on each input, (N,).

    Attack i adds eps E|x| in the direction of row i of W^T W, both signs; the target stays x.
    """
    x = features.draw(count, torch.Generator(toys.W.device).manual_seed(-1 - seed))
    rows = torch.nn.functional.normalize(toys.W.mT @ toys.W, dim=-1)
    size = eps * torch.linalg.vector_norm(x, dim=1).mean(-1)
    calm = (toys(x) - x).square().sum(1)
    worst = torch.full_like(calm, -torch.inf)
    for i in range(rows.shape[1]):
        for sign in (1, -1):
            moved = x + (sign * size[:, None] * rows[:, i])[..., None]
            worst = torch.maximum(worst, (toys(moved) - x).square().sum(1))
    return (worst - calm).mean(-1)


def border(importance: Tensor) -> Tensor:
    """Density under which W = (1, -1), b = 0 costs less than one feature alone, at n = 2, m = 1.

    p = min(4I / (2 + 5I), 4 / (5 + 2I)), I the second feature's importance, the first's is 1.
    Ignoring a feature costs I (p/3 - p^2/4), the antipodal pair p^2 (1 + I) / 6. Weights are
    fixed, so this bounds the region of superposition from within; see `best_border`.
    """
    return torch.minimum(4 * importance / (2 + 5 * importance), 4 / (5 + 2 * importance))


def pair_loss(w: Tensor, b: Tensor, importance: Tensor, p: Tensor, nodes: int = 48) -> Tensor:
    """Loss of n = 2, m = 1 for w, b (..., 2), by the midpoint rule on nodes^2 places.

    Both features off, one on, both on have the shares (1 - p)^2, p (1 - p) each, p^2. Importance
    and p (...) as in `border`. Relative error about 1 / (4 nodes^2).
    """
    g = ((torch.arange(nodes) + 0.5) / nodes).to(w)
    zero = torch.zeros_like(g)
    both = torch.stack(torch.meshgrid(g, g, indexing="ij")).flatten(1)
    alone = [torch.stack([g, zero]), torch.stack([zero, g])]
    x = torch.cat([torch.zeros(2, 1).to(w), *alone, both], 1)
    p = p[..., None]
    one = (p * (1 - p) / nodes).expand(*p.shape[:-1], 2 * nodes)
    two = (p**2 / nodes**2).expand(*p.shape[:-1], nodes**2)
    y = (w[..., None] * (w @ x)[..., None, :] + b[..., None]).relu()
    error = (y - x).square()
    weighed = error[..., 0, :] + importance[..., None] * error[..., 1, :]
    return (weighed * torch.cat([(1 - p) ** 2, one, two], -1)).sum(-1)


def best_pair(
    importance: Tensor, p: Tensor, steps: int = 600, lr: float = 0.02
) -> tuple[Tensor, Tensor, Tensor]:
    """The antipodal pair with W and b free, by Adam on `pair_loss` from w = (1, -1), b = 0.

    Returns (w, b, loss), float64. Cost: steps * (1 + 2 nodes + nodes^2) evaluations a point.
    """
    importance, p = (t.double() for t in torch.broadcast_tensors(importance, p))
    w = torch.stack([torch.ones_like(p), -torch.ones_like(p)], -1).requires_grad_()
    b = torch.zeros_like(w).requires_grad_()
    descent = torch.optim.Adam([w, b], lr=lr)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(descent, steps)
    for _ in range(steps):
        descent.zero_grad()
        pair_loss(w, b, importance, p).sum().backward()
        descent.step()
        slower.step()
    w, b = w.detach(), b.detach()
    return w, b, pair_loss(w, b, importance, p)


def best_border(importance: Tensor, halvings: int = 10) -> Tensor:
    """Density under which the antipodal pair wins with W and b at their optimum, (...).

    Found by halving (.02, 1). The pair wins if it costs less than ignoring the less important
    feature and is still nearer to antipodal than to dropped (by `dropped`): near importance 1 a
    faint second feature stays on beyond the border. Cost: `halvings` runs of `best_pair`.
    """
    weight = importance.double()
    low, high = torch.full_like(weight, 0.02), torch.ones_like(weight)
    alone = torch.eye(2).to(weight)[(weight > 1).long()]
    for _ in range(halvings):
        p = (low + high) / 2
        w, _, loss = best_pair(weight, p)
        ignored = pair_loss(alone, (1 - alone) * p[..., None] / 2, weight, p)
        i, j = dropped(w[..., None, :])
        wins = (loss < ignored) & (i != j)
        low, high = torch.where(wins, p, low), torch.where(wins, high, p)
    return ((low + high) / 2).to(importance)

"""Linear maps known by what they do: push a direction forward, pull a measurement back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import Parameter
from torch.overrides import TorchFunctionMode

Shape = tuple[int, ...]
Pass = Callable[[Tensor], Tensor]


class Passes(NamedTuple):
    """Directions sent through a map so far: `push` forward, `pull` back."""

    push: int
    pull: int


class LinearMap:
    """A linear map A: R^in_shape -> R^out_shape, given by two functions on rows of directions.

    push: (k, *in_shape) -> (k, *out_shape), v -> A v;  pull: (k, *out_shape) -> (k, *in_shape),
    u -> A^T u; any k >= 1. A row of the wrong shape, or an answer of the wrong shape, raises
    ValueError. Results carry no graph. `A.T` swaps the two, `A @ B` composes (first B, then A),
    `A.dense()` is the matrix (m, n), m = numel of out_shape, n = numel of in_shape.

    `A.passes` = (push, pull) counts directions of A itself, so `A.T.push` adds to pull. A product
    sends every pass through its factors and shares their counters: it shows, for push and pull,
    the factor that has run most. dtype and device are those of the directions that solvers draw
    (default: float32 on the CPU).
    """

    def __init__(
        self,
        push: Pass,
        pull: Pass,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.dtype, self.device = dtype, device
        self._pair: tuple[Pass, Pass] = (push, pull)
        self._side = 0
        self._counts: list[list[int]] = [[0, 0]]
        self._counted = True

    def push(self, V: Tensor) -> Tensor:
        """A v for each row v: (k, *in_shape) -> (k, *out_shape). Costs k pushes."""
        return self._apply(0, V, self.in_shape, self.out_shape)

    def pull(self, U: Tensor) -> Tensor:
        """A^T u for each row u: (k, *out_shape) -> (k, *in_shape). Costs k pulls."""
        return self._apply(1, U, self.out_shape, self.in_shape)

    def _apply(self, way: int, V: Tensor, shape: Shape, answer: Shape) -> Tensor:
        name = ("push", "pull")[way]
        _check_rows(V, shape, name)
        with torch.no_grad():
            W = self._pair[way ^ self._side](V.detach())
        if W.shape != (len(V), *answer):
            raise ValueError(f"{name} must answer {(len(V), *answer)}, gave {tuple(W.shape)}")
        if self._counted:
            self._counts[0][way ^ self._side] += len(V)
        return W.detach()

    @property
    def T(self) -> LinearMap:
        """The transpose, with the same counter."""
        other = object.__new__(LinearMap)
        other.__dict__ |= self.__dict__
        other.in_shape, other.out_shape, other._side = self.out_shape, self.in_shape, 1 - self._side
        return other

    def __matmul__(self, other: LinearMap) -> LinearMap:
        if not isinstance(other, LinearMap):
            return NotImplemented
        if self.in_shape != other.out_shape:
            raise ValueError(
                f"A @ B needs A.in_shape == B.out_shape, got {self.in_shape} and {other.out_shape}"
            )
        product = LinearMap(
            lambda V: self.push(other.push(V)),
            lambda U: other.pull(self.pull(U)),
            other.in_shape,
            self.out_shape,
            _finer(self.dtype, other.dtype),
            self.device or other.device,
        )
        product._counts, product._counted = [*self._counts, *other._counts], False
        return product

    def dense(self) -> Tensor:
        """The matrix of A, shape (m, n). Costs min(m, n) passes and m * n numbers of memory."""
        n, m = math.prod(self.in_shape), math.prod(self.out_shape)
        if n <= m:
            return self.push(self._eye(self.in_shape)).reshape(n, m).T.contiguous()
        return self.pull(self._eye(self.out_shape)).reshape(m, n)

    def _eye(self, shape: Shape) -> Tensor:
        size = math.prod(shape)
        return torch.eye(size, dtype=self.dtype, device=self.device).reshape(size, *shape)

    @property
    def passes(self) -> Passes:
        """Directions pushed and pulled so far, a snapshot."""
        return Passes(*(max(column) for column in zip(*self._counts, strict=True)))

    def __repr__(self) -> str:
        return f"LinearMap({self.in_shape} -> {self.out_shape}, {self.passes})"


def _finer(a: torch.dtype | None, b: torch.dtype | None) -> torch.dtype | None:
    return torch.promote_types(a, b) if a and b else a or b


def _check_rows(V: Tensor, shape: Shape, name: str) -> None:
    if not isinstance(V, Tensor):
        raise ValueError(f"{name} takes a tensor, got {type(V).__name__}")
    if V.ndim == len(shape) + 1 and V.shape[1:] == shape and len(V) >= 1:
        return
    hint = ": give one direction as v[None]" if V.shape == shape else ""
    rows = ", ".join(["k", *map(str, shape)])
    raise ValueError(f"{name} takes rows ({rows}), k >= 1, got {tuple(V.shape)}{hint}")


def matrix(M: Any) -> LinearMap:
    """The map v -> M v of a real matrix M (m, n): rows are (k, n) -> (k, m).

    Integers become the default float type. Raises ValueError unless M is two-dimensional, real
    and finite.
    """
    M = torch.as_tensor(M).detach()
    M = M if M.is_floating_point() or M.is_complex() else M.to(torch.get_default_dtype())
    if M.ndim != 2 or 0 in M.shape or M.is_complex() or not M.isfinite().all():
        raise ValueError(f"matrix takes a real finite (m, n) array, got {M.dtype} {tuple(M.shape)}")
    m, n = M.shape
    return LinearMap(lambda V: V.to(M) @ M.T, lambda U: U.to(M) @ M, (n,), (m,), M.dtype, M.device)


def mask(w: Tensor) -> LinearMap:
    """The diagonal map v -> w * v on tensors of w's shape, its own transpose.

    With w in {0, 1}: `mask(w) @ A` keeps the part of the output where w = 1. w is bool or real and
    finite, else ValueError. Directions keep their own dtype and device.
    """
    w = torch.as_tensor(w).detach()
    if w.is_complex() or not w.isfinite().all():
        raise ValueError("mask takes bool or finite real weights, of the shape of one direction")
    dtype = w.dtype if w.is_floating_point() else None

    def scale(V: Tensor) -> Tensor:
        return V * w.to(V)

    return LinearMap(scale, scale, w.shape, w.shape, dtype)


def check_adjoint(A: LinearMap, k: int = 4, seed: int = 0, tol: float | None = None) -> float:
    """Largest relative error of <A v, u> = <v, A^T u> over k random pairs; the identity makes
    push and pull one linear map and its transpose.

    v is random, u = A v / |A v| plus a random unit vector, so that a pull wrong by one part in a
    thousand shows. tol: default the square root of the dtype's eps (float32 3e-4). Raises
    AssertionError beyond it. Costs k pushes and k pulls.
    """
    generator = torch.Generator().manual_seed(seed)
    V, W = (_unit(random_rows(A, k, shape, generator)) for shape in (A.in_shape, A.out_shape))
    AV = A.push(V)
    U = _unit(AV) + W
    AtU = A.pull(U)
    v, u, Av, Atu = (X.reshape(k, -1).double() for X in (V, U, AV, AtU))
    gap = ((Av * u).sum(1) - (v * Atu).sum(1)).abs()
    size = torch.maximum(Av.norm(dim=1) * u.norm(dim=1), v.norm(dim=1) * Atu.norm(dim=1))
    error = float((gap / size.clamp_min(torch.finfo(size.dtype).tiny)).max())
    coarse = max(torch.finfo(X.dtype).eps for X in (V, AV, AtU))
    limit = tol if tol is not None else coarse**0.5
    if not error <= limit:
        raise AssertionError(
            f"<A v, u> and <v, A^T u> differ by {error:.1e} (at most {limit:.1e}): "
            "pull is not the transpose of push"
        )
    return error


def _unit(V: Tensor) -> Tensor:
    return F.normalize(V.reshape(len(V), -1), dim=1).reshape(V.shape)


def random_rows(A: LinearMap, k: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """k Gaussian rows (k, *shape) on A's device, the same on every device; float32 or finer."""
    dtype = torch.promote_types(A.dtype or torch.get_default_dtype(), torch.float32)
    rows = torch.randn(k, *shape, generator=generator, dtype=torch.float64)
    return rows.to(A.device or "cpu", dtype)


def jacobian(f: Pass, x: Tensor, chunk: int | str = "auto") -> LinearMap:
    """The Jacobian J of f at the point x, as a map that pushes and pulls and is never formed.

    f: (B, *in) -> (B, *out), batched with independent items; x: (1, *in), real and finite.
    push: v -> J v, how f(x) moves when x moves along v. pull: u -> J^T u, the gradient of <f, u>.
    f runs once, here. A pull goes back through its graph; J^T u is linear in u, so a push goes
    back through the pull (the transpose of the transpose), which spares the primal of forward mode.
    Memory: that graph, plus `chunk` directions at a time whatever k is ("auto" picks by size; too
    large for a GPU, it halves and goes on). One pass costs about one evaluation of f. On a GPU
    float32 convolutions run in full here, not in TF32.

    Results have x's device and dtype. Raises ValueError for a point without its batch axis, an f
    that is not batched or whose value carries no gradient, and for values or derivatives that are
    not finite.
    """
    _check_point(x)
    x, h = _evaluate(f, x)
    in_shape, out_shape = x.shape[1:], h.shape[1:]
    size = Chunk(chunk, in_shape.numel() + out_shape.numel(), x.device.type)
    graph: list[tuple[Tensor, Tensor]] = []

    def pull(U: Tensor) -> Tensor:
        return size.over(lambda rows: _back(h, x, rows), U.to(x))

    def push(V: Tensor) -> Tensor:
        if not graph:
            graph.append(_transpose(h, x))
        return size.over(lambda rows: _back(*graph[0], rows), V.to(x)).to(x)

    return LinearMap(push, pull, in_shape, out_shape, x.dtype, x.device)


def _check_point(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(f"a point is a real floating-point tensor, got {type(x).__name__}")
    if x.ndim < 1 or len(x) != 1:
        raise ValueError(
            f"a point has shape (1, *in), got {tuple(x.shape)}: one item x of a batch is x[None]"
        )
    if not x.isfinite().all():
        raise ValueError("the point x holds NaN or infinity")


def _evaluate(f: Pass, x: Tensor) -> tuple[Tensor, Tensor]:
    """The leaf x and h = f(x) with its graph, in operations that can be differentiated twice."""
    with (
        torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _Twice(),
        _full_precision(),
    ):  # fmt: skip
        x = x.detach().clone().requires_grad_()
        h = f(x.clone())
    if not isinstance(h, Tensor) or h.ndim < 1 or len(h) != 1:
        shape = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
        raise ValueError(f"f must be batched, (B, *in) -> (B, *out): f(x) for B = 1 gave {shape}")
    if not h.isfinite().all():
        raise ValueError("f(x) holds NaN or infinity")
    if not h.requires_grad:
        raise ValueError("f(x) carries no gradient: f is constant, or detaches or runs in no_grad")
    return x, h


def _transpose(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The pull as a graph: J^T u and the leaf u it is linear in."""
    with torch.inference_mode(False), torch.enable_grad(), _full_precision():
        u = torch.zeros_like(h).requires_grad_()
        (Jtu,) = torch.autograd.grad(h, x, u, create_graph=True, materialize_grads=True)
    return Jtu, u


def _back(y: Tensor, leaf: Tensor, rows: Tensor) -> Tensor:
    """Rows of cotangents of y (1, *) -> rows of cotangents of leaf, through the kept graph."""
    several = len(rows) > 1
    weights = rows[:, None] if several else rows
    with _full_precision():
        (out,) = torch.autograd.grad(
            y, leaf, weights, retain_graph=True, is_grads_batched=several, materialize_grads=True
        )
    return out[:, 0] if several else out


@contextmanager
def _full_precision() -> Iterator[None]:
    """float32 convolutions in full: by default a GPU rounds them to TF32, too coarse for an SVD."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class Chunk:
    """How many directions go through a map at once; halves when a pass of that size fails."""

    # Numbers of one direction that keep a device busy: beyond them a batch only costs memory.
    BUSY = {"cpu": 2**15, "cuda": 2**22}

    def __init__(self, size: int | str, numbers: int, device: str) -> None:
        if size == "auto":
            size = max(1, self.BUSY.get(device, 2**18) // numbers)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f'chunk is "auto" or an integer >= 1, got {size!r}')
        self.size = size

    def over(self, one_pass: Pass, rows: Tensor) -> Tensor:
        """one_pass on at most `size` rows at a time; raises ValueError on a result not finite."""
        out = torch.cat(list(self._parts(one_pass, rows)))
        if not out.isfinite().all():
            raise ValueError(
                "the derivative is not finite: NaN in the direction, or a square root, norm or "
                "division at 0 inside f at this point"
            )
        return out

    def _parts(self, one_pass: Pass, rows: Tensor) -> Iterator[Tensor]:
        done = 0
        while done < len(rows):
            try:
                part = one_pass(rows[done : done + self.size])
            except RuntimeError:  # out of memory, or an operation that cannot be batched
                if self.size == 1:
                    raise
                self.size = max(1, min(self.size, len(rows)) // 2)
                continue
            done += len(part)
            yield part


class _Twice(TorchFunctionMode):
    """Runs f in operations whose second derivative is cheap and can be batched."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if args and func in (
            F.group_norm,
            torch.group_norm,
        ):  # strided input breaks its batched pull
            args = (args[0].contiguous(), *args[1:])
        if func is F.conv2d and not kwargs and len(args) == 7 and _constant(*args):
            return _ConstantConv.apply(*args)
        return func(*args, **(kwargs or {}))


def _constant(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> bool:
    fixed = isinstance(weight, Parameter) and (bias is None or isinstance(bias, Parameter))
    # Under autocast x and weight change their dtype inside, and the way back would not.
    fixed = fixed and x.dtype == weight.dtype and not torch.is_autocast_enabled(x.device.type)
    return fixed and x.ndim == 4 and all(isinstance(g, tuple) for g in geometry[:3])


class _ConstantConv(torch.autograd.Function):
    """conv2d whose second derivative skips the unused gradient of the weights.

    torch computes that gradient always, and it is more than half of a push.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weight, _, *geometry = inputs
        ctx.save_for_backward(weight)
        ctx.save_for_forward(weight)
        ctx.geometry, ctx.size = geometry, x.shape[2:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        stride, pad, dilation, groups = ctx.geometry
        sizes = zip(
            ctx.size, grads[0].shape[2:], weight.shape[2:], stride, pad, dilation, strict=True
        )
        rest = [n - ((o - 1) * s - 2 * p + d * (w - 1) + 1) for n, o, w, s, p, d in sizes]
        dx = F.conv_transpose2d(grads[0], weight, None, stride, pad, rest, groups, dilation)
        return dx, *(None,) * 6

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *rest: None) -> Tensor:
        return F.conv2d(dx, ctx.saved_tensors[0], None, *ctx.geometry)

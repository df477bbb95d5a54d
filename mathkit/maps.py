"""Linear maps known by what they do: push a direction forward, pull a measurement back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

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

"""Linear maps known by what they do: push a direction forward, pull a measurement back."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mathkit.arguments import integer, number, told

Shape = tuple[int, ...]
Pass = Callable[[Tensor], Tensor]

BATCH = 8  # rows that a matrix multiplies for little more than one


class Passes(NamedTuple):
    """Directions sent through a map so far: `push` forward, `pull` back."""

    push: int
    pull: int


@dataclasses.dataclass
class _Way:
    """One of a map's two functions, and how many directions went through it."""

    run: Pass
    count: int = 0


class LinearMap:
    """A linear map A: R^in_shape -> R^out_shape, given by two functions on rows of directions.

    A (a v + b w) = a A v + b A w, and <A v, u> = <v, A^T u>, for all v, w and u.

    Args:
        push: v -> A v for each row, (k, *in_shape) -> (k, *out_shape), any k >= 1.
        pull: u -> A^T u for each row, (k, *out_shape) -> (k, *in_shape).
        in_shape: shape of one direction; an integer n means (n,).
        out_shape: shape of one measurement.
        dtype, device: of the directions that solvers draw (default: float32 on the CPU).

    Maps are added, subtracted, multiplied and divided by numbers, and composed: `A @ B` is first
    B, then A. `A.T` swaps push and pull. `A @ v` is A v for one direction v of exactly in_shape.
    `A.shape` is (m, n), m = numel of out_shape, n = numel of in_shape.

    Directions are real and finite. They come to the map's device, and to
    torch.promote_types(their type, the map's): integers and bools take the map's type, float64 in
    a float32 map stays float64. What push and pull answer is left in its type: a Jacobian answers
    in that of its point. Passes run without autocast, and results carry no graph.

    `A.passes` = (push, pull) counts directions of A, so `A.T.push` adds to pull. A sum, multiple
    or product counts its own from 0, and each pass of it is one of every map it is made of.

    Raises ValueError for shapes, types or functions that are none of these, and in a pass for rows
    or an answer of another shape, and for NaN or infinity in a direction.

    >>> A = mk.LinearMap(lambda V: V[:, :2], lambda U: torch.nn.functional.pad(U, (0, 1)), 3, 2)
    >>> A @ torch.tensor([1.0, 2.0, 3.0])
    tensor([1., 2.])
    >>> (2 * A.T @ A - mk.matrix(torch.eye(3))).dense()
    tensor([[ 1.,  0.,  0.],
            [ 0.,  1.,  0.],
            [ 0.,  0., -1.]])
    """

    __array_ufunc__ = None  # numpy's numbers leave `number * A` to A
    batch = 1  # directions that a pass takes together for less than it takes them one by one

    def __init__(
        self,
        push: Pass,
        pull: Pass,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not (callable(push) and callable(pull)):
            raise ValueError("push and pull are functions of rows: mk.matrix(M) makes them of M")
        if dtype and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"a map's dtype is a floating-point type of torch, got {dtype}")
        self.in_shape, self.out_shape = _shape(in_shape), _shape(out_shape)
        self.dtype, self.device = dtype, device
        self._given = _Way(push), _Way(pull)
        self._push, self._pull = self._given

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n), the shape of `dense()`: numel of out_shape and of in_shape."""
        return math.prod(self.out_shape), math.prod(self.in_shape)

    @property
    def passes(self) -> Passes:
        """Directions pushed and pulled so far, a snapshot; `A.T.passes` is the same."""
        return Passes(*(way.count for way in self._given))

    def push(self, V: Tensor) -> Tensor:
        """A v for each row v: (k, *in_shape) -> (k, *out_shape). Costs k pushes.

        >>> mk.matrix([[1, 2], [3, 4]]).push(torch.eye(2))
        tensor([[1., 3.],
                [2., 4.]])
        """
        return self._apply("push", self._push, V, self.in_shape, self.out_shape)

    def pull(self, U: Tensor) -> Tensor:
        """A^T u for each row u: (k, *out_shape) -> (k, *in_shape). Costs k pulls.

        >>> mk.matrix([[1, 2], [3, 4]]).pull(torch.eye(2))
        tensor([[1., 2.],
                [3., 4.]])
        """
        return self._apply("pull", self._pull, U, self.out_shape, self.in_shape)

    def _apply(self, name: str, way: _Way, V: Tensor, shape: Shape, answer: Shape) -> Tensor:
        _check_rows(V, shape, name)
        own = self.dtype or (V.dtype if V.is_floating_point() else torch.get_default_dtype())
        with plainly(self.device or V.device):
            V = _normal(V.to(device=self.device, dtype=torch.promote_types(V.dtype, own)))
            if not V.isfinite().all():
                raise ValueError(f"{name}: the direction is not finite, it holds NaN or infinity")
            try:
                W = way.run(V)
            except RuntimeError as error:
                if "dtype" not in str(error):
                    raise
                raise ValueError(
                    f"{name} does not take {V.dtype} rows: give the map the dtype of what its "
                    f"functions multiply by, mk.LinearMap(..., dtype=...) ({error})"
                ) from error
            if not isinstance(W, Tensor) or W.is_complex() or W.shape != (len(V), *answer):
                raise ValueError(f"{name} must answer a real {(len(V), *answer)}, gave {told(W)}")
            way.count += len(V)
            return _normal(W)

    @property
    def T(self) -> LinearMap:
        """The transpose, (m, n) -> (n, m): push and pull swapped, the same counter. Costs nothing.

        >>> mk.matrix([[1, 2], [3, 4]]).T.dense()
        tensor([[1., 3.],
                [2., 4.]])
        """
        other = copy.copy(self)
        other.in_shape, other.out_shape = self.out_shape, self.in_shape
        other._push, other._pull = self._pull, self._push
        return other

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, Tensor) and other.shape == self.in_shape:
            return self.push(other[None])[0]
        if not isinstance(other, LinearMap):
            raise ValueError(
                f"A @ v takes a map, or a tensor v of A's in_shape {self.in_shape}, got "
                f"{told(other)}: A.push(rows) takes several directions, one a row"
            )
        if self.in_shape != other.out_shape:
            raise ValueError(
                f"A @ B needs A.in_shape == B.out_shape, got {self.in_shape} and {other.out_shape}"
            )
        return self._with(
            other, lambda V: self.push(other.push(V)), lambda U: other.pull(self.pull(U))
        )

    def __add__(self, other: LinearMap) -> LinearMap:
        check_map(other)
        if (self.in_shape, self.out_shape) != (other.in_shape, other.out_shape):
            raise ValueError(
                "a sum needs equal in_shape and out_shape, got "
                f"{self.in_shape} -> {self.out_shape} and {other.in_shape} -> {other.out_shape}"
            )
        return self._with(
            other, lambda V: self.push(V) + other.push(V), lambda U: self.pull(U) + other.pull(U)
        )

    def __mul__(self, factor: float) -> LinearMap:
        c = _factor(factor)
        return self._with(self, lambda V: self.push(V) * c, lambda U: self.pull(U) * c)

    def _with(self, first: LinearMap, push: Pass, pull: Pass) -> LinearMap:
        """The map of these passes from what `first` takes to what self answers."""
        dtype, device = _finer(self.dtype, first.dtype), self.device or first.device
        made = LinearMap(push, pull, first.in_shape, self.out_shape, dtype, device)
        made.batch = max(self.batch, first.batch)
        return made

    __rmul__ = __mul__

    def __neg__(self) -> LinearMap:
        return self * -1

    def __sub__(self, other: LinearMap) -> LinearMap:
        check_map(other)
        return self + -other

    def __truediv__(self, divisor: float) -> LinearMap:
        c = _factor(divisor)
        if c == 0:
            raise ValueError("a map is divided by a number other than 0, got 0")
        return self * (1 / c)

    def dense(self) -> Tensor:
        """The matrix of A, shape (m, n). Costs min(m, n) passes and m * n numbers of memory.

        >>> mk.mask([1, 0, 2]).dense()
        tensor([[1., 0., 0.],
                [0., 0., 0.],
                [0., 0., 2.]])
        """
        m, n = self.shape
        if n <= m:
            return self.push(self._eye(self.in_shape)).reshape(n, m).T.contiguous()
        return self.pull(self._eye(self.out_shape)).reshape(m, n)

    def _eye(self, shape: Shape) -> Tensor:
        size = math.prod(shape)
        return torch.eye(size, dtype=self.dtype, device=self.device).reshape(size, *shape)

    def scipy(self) -> Any:
        """A as a scipy.sparse.linalg.LinearOperator on flat numpy vectors, for SciPy's solvers.

        Returns: shape (m, n), A's dtype (float32 for half precision, which numpy's solvers lack);
        matvec and rmatvec cost one pass, matmat and rmatmat one a column.

        >>> mk.matrix([[1, 2], [3, 4]]).scipy().matvec([1.0, 0.0])
        array([1., 3.], dtype=float32)
        """
        from scipy.sparse.linalg import LinearOperator

        dtype = torch.promote_types(self.dtype or torch.get_default_dtype(), torch.float32)

        def on_columns(one_pass: Pass, shape: Shape) -> Callable[[Any], Any]:
            def run(X: Any) -> Any:
                X = X.reshape(len(X), -1)  # SciPy's vectors are (n,) or (n, 1)
                rows = torch.from_numpy(np.array(X.T, order="C"))
                rows = rows if rows.is_complex() else rows.to(dtype)  # a pass says no to complex
                W = one_pass(rows.reshape(len(rows), *shape))
                return W.reshape(len(rows), -1).T.to("cpu", dtype).numpy()

            return run

        forth, back = on_columns(self.push, self.in_shape), on_columns(self.pull, self.out_shape)
        real = torch.empty(0, dtype=dtype).numpy().dtype
        return LinearOperator(self.shape, forth, back, dtype=real, matmat=forth, rmatmat=back)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_shape} -> {self.out_shape}, {self.passes})"


def check_map(A: Any) -> None:
    """Raises ValueError, with what to do, for anything but a LinearMap. Costs nothing.

    >>> mk.linear.linear_map.check_map(torch.eye(2))
    Traceback (most recent call last):
    ValueError: takes a LinearMap, got Tensor: mk.matrix(M) makes one of a matrix
    """
    if isinstance(A, LinearMap):
        return
    if hasattr(A, "rmatvec"):
        cure = "mk.LinearMap(push, pull, n, m) makes one of two functions on rows of tensors"
    elif callable(A):
        cure = "mk.jacobian(f, x) makes one of a function at a point"
    else:
        cure = "mk.matrix(M) makes one of a matrix"
    raise ValueError(f"takes a LinearMap, got {type(A).__name__}: {cure}")


def _shape(size: int | Sequence[int]) -> Shape:
    sizes = tuple(size) if isinstance(size, Sequence) else (size,)
    return tuple(integer(s, f"each size of the shape {size!r}", 1) for s in sizes)


def _factor(x: Any) -> float:
    if isinstance(x, LinearMap):
        raise ValueError("a map is multiplied by a number: A @ B composes two maps")
    return number(x, "what a map is multiplied or divided by")


def _finer(a: torch.dtype | None, b: torch.dtype | None) -> torch.dtype | None:
    return torch.promote_types(a, b) if a and b else a or b


def _normal(V: Tensor) -> Tensor:
    """V without a graph, and fit for later gradients even if it comes from inference_mode."""
    return V.clone() if V.is_inference() else V.detach()


def _check_rows(V: Tensor, shape: Shape, name: str) -> None:
    if not isinstance(V, Tensor):
        hint = ": torch.from_numpy(V) makes one" if hasattr(V, "__array__") else ""
        raise ValueError(f"{name} takes a tensor, got {type(V).__name__}{hint}")
    if V.is_complex():
        raise ValueError(f"{name} takes real rows, got {V.dtype}")
    if V.ndim == len(shape) + 1 and V.shape[1:] == shape and len(V) >= 1:
        return
    hint = ": give one direction as v[None]" if V.shape == shape else ""
    rows = ", ".join(["k", *map(str, shape)])
    raise ValueError(f"{name} takes rows ({rows}), k >= 1, got {tuple(V.shape)}{hint}")


def random_rows(A: LinearMap, k: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """k Gaussian rows (k, *shape) on A's device, the same on every device; float32 or finer.

    >>> A = mk.matrix([[1, 2], [3, 4]])
    >>> mk.linear.linear_map.random_rows(A, 5, A.in_shape, torch.Generator().manual_seed(0)).shape
    torch.Size([5, 2])
    """
    dtype = torch.promote_types(A.dtype or torch.get_default_dtype(), torch.float32)
    rows = torch.randn(k, *shape, generator=generator, dtype=torch.float64)
    return rows.to(A.device or "cpu", dtype)


@contextmanager
def plainly(device: torch.device | str | None) -> Iterator[None]:
    """Whatever mode the caller is in: no rounding by autocast, tensors that autograd can use."""
    off = torch.autocast(torch.device(device or "cpu").type, enabled=False)
    with torch.inference_mode(False), torch.no_grad(), off:
        yield

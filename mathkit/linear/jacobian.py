"""The Jacobian of a function at a point, as a linear map that pushes and pulls."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from mathkit.arguments import integer, told
from mathkit.linear._tape.convolution import coarse as coarse
from mathkit.linear._tape.convolution import is_coarse as is_coarse
from mathkit.linear._tape.tape import Tape as Tape
from mathkit.linear._tape.tape import read
from mathkit.linear._tape.twice import ConstantConv, Twice
from mathkit.linear.chunks import GRAPH, TAPE, Chunk, fitting
from mathkit.linear.linear_map import LinearMap, Pass


def jacobian(f: Pass, x: Tensor, chunk: Any = "auto") -> LinearMap:
    """The Jacobian J of f at the point x, as a map that pushes and pulls and is never formed.

    push: v -> J v, how f(x) moves when x moves along v. pull: u -> J^T u, the gradient of <f, u>.
    f runs once, here, under the caller's autocast. Where each of its operations has a rule, these
    are recorded as a tape, the passes run through it, and autograd's graph is dropped. Else a pull
    goes back through the graph; J^T u is linear in u, so a push goes back through the pull (the
    transpose of the transpose), which spares the primal of forward mode.

    Args:
        f: (B, *in) -> (B, *out), batched with independent items.
        x: the point, (1, *in), real and finite.
        chunk: directions that go at once, "auto" by size; too many for a GPU, it halves and goes
            on.

    Returns: a `LinearMap` in -> out of x's device and dtype.
    Raises ValueError for a point without its batch axis, an f that is not batched or whose value
    carries no gradient, a batch norm in training mode, and for values or derivatives that are not
    finite.
    Cost: one evaluation of f; then a pass at most about another. Memory: the tape or graph, and
    `chunk` directions. No pass is rounded by autocast; on a GPU float32 convolutions with constant
    weights run in full, not in TF32, unless inside `coarse()`.
    Source: Griewank & Walther 2008, section 3; the push by two pulls after Townsend 2017.

    >>> J = mk.jacobian(lambda x: x**2, torch.tensor([[1.0, 3.0]]))
    >>> J.dense()
    tensor([[2., 0.],
            [0., 6.]])
    """
    if not callable(f):
        raise ValueError(
            f"f is a function of x, got {told(f)}: of a model, mk.encoder(p, t) or "
            "mk.posterior_mean(p, t)"
        )
    _check_point(x)
    passes = record(f, x)
    in_shape, out_shape = x.shape[1:], passes.out_shape[1:]
    numbers = in_shape.numel() + math.prod(out_shape)
    fit = fitting(numbers, x.device.type, TAPE if isinstance(passes, Tape) else GRAPH)
    auto = isinstance(chunk, str) and chunk == "auto"
    rows = Chunk(fit if auto else integer(chunk, 'chunk, unless "auto",', 1))
    like = torch.empty(0, dtype=x.dtype, device=x.device)

    def pull(U: Tensor) -> Tensor:
        U = U.to(like)[:, None]
        # Out of memory, or an operation that cannot be batched: then fewer at once.
        return _finite(rows.parts(len(U), lambda some: passes.pull(U[some])))[:, 0]

    def push(V: Tensor) -> Tensor:
        V = V.to(like)[:, None]
        return _finite(rows.parts(len(V), lambda some: passes.push(V[some])))[:, 0]

    J = LinearMap(push, pull, in_shape, out_shape, x.dtype, x.device)
    J.batch = fit  # whatever chunk: one answer
    return J


def _check_point(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"a point is a real floating-point tensor, got {found}")
    if x.ndim < 1 or len(x) != 1:
        raise ValueError(
            f"a point has shape (1, *in), got {tuple(x.shape)}: one item x of a batch is x[None]"
        )
    if not x.isfinite().all():
        raise ValueError("the point x holds NaN or infinity")


def record(f: Pass, x: Tensor) -> Tape | Graph:
    """f at the points x, in operations that can be differentiated twice, as a tape or a graph."""
    with torch.inference_mode(False), torch.enable_grad(), Twice():
        x = x.detach().clone().requires_grad_()
        h = f(x.clone())
        _check_value(h, len(x))
        # Here, for a checkpointed f runs again, the same way, when its graph is read.
        return read(h, x, {ConstantConv: ConstantConv.rules}) or Graph(h, x)


def _check_value(h: Any, count: int) -> None:
    if not isinstance(h, Tensor) or h.ndim < 1 or len(h) != count:
        shape = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
        hint = ": add .sample" if isinstance(getattr(h, "sample", None), Tensor) else ""
        raise ValueError(
            f"f must be batched, (B, *in) -> (B, *out): f(x) for B = {count} gave {shape}{hint}"
        )
    if not h.isfinite().all():
        raise ValueError("f(x) holds NaN or infinity")
    if not h.requires_grad:
        raise ValueError("f(x) carries no gradient: f is constant, or detaches or runs in no_grad")


class Graph:
    """The Jacobian of f at the points x through autograd's graph of h = f(x), which is kept."""

    def __init__(self, h: Tensor, x: Tensor) -> None:
        self.h, self.x, self.out_shape = h, x, tuple(h.shape)
        self.transposed: tuple[Tensor, Tensor] | None = None

    def pull(self, U: Tensor) -> Tensor:
        return _back(self.h, self.x, U)

    def push(self, V: Tensor) -> Tensor:
        if self.transposed is None:
            self.transposed = self._transpose()
        return _back(*self.transposed, V).to(V)

    def _transpose(self) -> tuple[Tensor, Tensor]:
        """The pull as a graph: J^T u and the leaf u it is linear in."""
        with torch.enable_grad(), Twice():
            u = torch.zeros_like(self.h).requires_grad_()
            ends = get_gradient_edge(self.h), get_gradient_edge(self.x)
            (Jtu,) = torch.autograd.grad(*ends, u, create_graph=True, allow_unused=True)
            if Jtu is None or not (Jtu.requires_grad or Jtu.any()):
                Jtu = torch.zeros_like(self.x) * u.sum()
        return Jtu, u


def _back(y: Tensor, leaf: Tensor, rows: Tensor) -> Tensor:
    """Cotangents of y (k, *y.shape) -> cotangents of leaf, through the kept graph."""
    several = len(rows) > 1
    weights = rows if several else rows[0]
    # A checkpointed f runs again here: within the mode, which edges do not leave as tensors do.
    with Twice():
        (out,) = torch.autograd.grad(
            get_gradient_edge(y),
            get_gradient_edge(leaf),
            weights,
            retain_graph=True,
            is_grads_batched=several,
            allow_unused=True,
        )
    if out is None:
        return rows.new_zeros(len(rows), *leaf.shape)
    return out if several else out[None]


def _finite(parts: Iterator[Tensor]) -> Tensor:
    """The parts of a pass as one; raises ValueError on a result not finite."""
    first, *others = parts
    out = torch.cat([first, *others]) if others else first
    # A sum tells quickly; only one that overflows needs the longer look.
    if not out.sum().isfinite() and not out.isfinite().all():
        raise ValueError(
            "the derivative is not finite: NaN in the direction, or a square root, norm or "
            "division at 0 inside f at this point"
        )
    return out

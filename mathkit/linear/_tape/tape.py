"""A recorded tape: f's operations at one point, each as a linear map that pushes and pulls.

Autograd's graph of f(x) names every operation that h depends on x by and keeps what its derivative
needs. Read once, it becomes a list of rules; a push runs down the list and a pull runs up, with no
autograd and no primal. The graph may then go, and most of the memory with it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from mathkit.linear._tape.convolution import Conv
from mathkit.linear._tape.nodes import NUMBERED, ONE, SEVERAL, Make, Op, Unsupported
from mathkit.linear._tape.rules import Rule, Shape

Key = tuple[Any, int]  # a node of the graph, and which of its outputs
_trusted: set[int] = set()  # kinds of graph whose tape agreed with autograd once


class Step(NamedTuple):
    """values[out] = rule(values[i] for i in ins); `last`: those of ins no later step needs."""

    rule: Rule
    ins: tuple[int, ...]
    out: int
    last: tuple[int, ...]


class Tape:
    """The Jacobian of f at the points x (B, *in), as f's own operations on k changes of all of
    them: (k, B, *in) -> (k, B, *out) and back."""

    def __init__(self, steps: list[Step], kind: int, in_shape: Shape, out_shape: Shape) -> None:
        self.steps, self.kind = steps, kind
        self.in_shape, self.out_shape = in_shape, out_shape
        self.layout = _layout(steps)
        for step in steps:
            step.rule.lay(self.layout)

    def push(self, V: Tensor) -> Tensor:
        """J v for each change v."""
        values = {0: self._enter(V)}
        for rule, ins, out, last in self.steps:
            values[out] = rule.push(*[values[i] for i in ins])
            for i in last:
                del values[i]
        (answer,) = values.values()
        return answer.reshape(len(V), *self.out_shape).contiguous()

    def pull(self, U: Tensor) -> Tensor:
        """J^T u for each change u."""
        top = self.steps[-1].out if self.steps else 0
        grads = {top: self._enter(U)}
        for rule, ins, out, _ in reversed(self.steps):
            for i, part in zip(ins, rule.pull(grads.pop(out)), strict=True):
                grads[i] = grads[i] + part if i in grads else part
        return grads[0].reshape(len(U), *self.in_shape).contiguous()

    def _enter(self, changes: Tensor) -> Tensor:
        if changes.ndim != 5:
            return changes
        images = changes.flatten(0, 1).contiguous(memory_format=self.layout)
        return images.unflatten(0, changes.shape[:2])


def _layout(steps: list[Step]) -> torch.memory_format:
    """The layout that the convolutions answer in: that of their weights."""
    for step in steps:
        if isinstance(step.rule, Conv) and step.rule.channels_last:
            return torch.channels_last
    return torch.contiguous_format


def read(h: Tensor, x: Tensor, custom: Mapping[type, Make]) -> Tape | None:
    """The tape of h = f(x) from its graph; None where an operation has no rule.

    x: the leaf, (B, *in), h: (B, *out). custom: rules of autograd functions of one's own. The
    first tape of its kind (the same operations, wired alike, of the same shapes) is compared with
    autograd in one push and one pull; where they differ, None.
    """
    if x.dtype not in (torch.float32, torch.float64):
        return None
    try:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            tape = _Reader(h, x, custom).tape()
            if tape.kind not in _trusted:
                if not agrees(tape, h, x):
                    return None
                _trusted.add(tape.kind)
            return tape
    except Exception:  # whatever is unusual: the graph itself still serves
        return None


def agrees(tape: Tape, h: Tensor, x: Tensor, tol: float | None = None) -> bool:
    """Does the tape pull what autograd pulls, and push its transpose? One random direction each.

    u = J v / |J v| plus a random unit vector, so that a push wrong by a factor shows in <J v, u>.
    tol: relative, default the square root of the dtype's eps.
    """
    # No seed that a caller may have drawn x with: along x itself much stands still.
    generator = torch.Generator().manual_seed(20_230_225)
    v, w = (_unit(torch.randn(s.shape, generator=generator, dtype=s.dtype).to(s)) for s in (x, h))
    Jv = tape.push(v[None])[0]
    u = _unit(Jv) + w
    # By edges, which no function mode intercepts: a checkpointed f must run again within it.
    (back,) = torch.autograd.grad(get_gradient_edge(h), get_gradient_edge(x), u, retain_graph=True)
    limit = tol if tol is not None else torch.finfo(x.dtype).eps ** 0.5
    apart = float((tape.pull(u[None])[0] - back).norm())
    gap = abs(float((Jv * u).sum() - (v * back).sum()))
    return apart <= limit * float(back.norm()) and gap <= limit * float(Jv.norm() * u.norm())


def _unit(v: Tensor) -> Tensor:
    return v / v.norm().clamp_min(torch.finfo(v.dtype).tiny)


class _Reader:
    """Turns the part of a graph that leads from h to x into steps."""

    def __init__(self, h: Tensor, x: Tensor, custom: Mapping[type, Make]) -> None:
        self.h, self.x, self.custom = h, x, custom
        self.nodes = list(_from_x(h.grad_fn, x))
        self.moving = set(self.nodes)
        self.uses = Counter(key for node in self.nodes for key in self._inputs(node))
        self.uses[h.grad_fn, h.output_nr] += 1
        self.values: dict[Key, int] = {}
        self.readers: list[int] = []  # value -> how many steps will read it
        self.made: dict[int, tuple[Rule, tuple[int, ...]]] = {}  # value -> what gives it
        self.kind: list[Any] = []

    def tape(self) -> Tape:
        for node in self.nodes:
            for nr in range(len(node._input_metadata)):
                if self.uses[node, nr]:
                    self._read(node, nr)
        order = [(rule, ins, out) for out, (rule, ins) in sorted(self.made.items())]
        top = self.values[self.h.grad_fn, self.h.output_nr]
        if order and order[-1][2] != top:
            raise Unsupported("the value is not the last to be made")
        shapes = tuple(self.x.shape), tuple(self.h.shape)
        return Tape(_numbered(order), hash((*self.kind, self.x.dtype)), *shapes)

    def _read(self, node: Any, nr: int) -> None:
        meta = node._input_metadata[nr]
        if meta.dtype != self.x.dtype or meta.device != self.x.device:
            raise Unsupported("the dtype or the device changes on the way")
        key = (node, nr)
        if hasattr(node, "variable"):
            self._new(key, self.uses[key])
            return
        edges = node.next_functions
        ins = [None if n is None else tuple(n._input_metadata[i].shape) for n, i in edges]
        op = Op(node, nr, ins, [n in self.moving for n, _ in edges], tuple(meta.shape))
        came = tuple(self.values[n, i] for n, i in edges if n in self.moving)
        self.kind.append((node.name(), nr, came, op.out, *ins))
        rules = _maker(node, op, self.custom)(op)
        for rule in rules[:-1]:
            came = (self._add(rule, came, 1),)
        self.values[key] = self._add(rules[-1], came, self.uses[key])

    def _add(self, rule: Rule, ins: tuple[int, ...], readers: int) -> int:
        """The value that the rule gives: no new one for an identity, or where rules merge."""
        if rule.identity:
            self.readers[ins[0]] += readers - 1
            return ins[0]
        if len(ins) == 1 and self.readers[ins[0]] == 1 and ins[0] in self.made:
            first, before = self.made[ins[0]]
            both = rule.after(first)
            if both is not None:
                self.made[ins[0]] = both, before
                self.readers[ins[0]] = readers
                return ins[0]
        out = self._new(None, readers)
        self.made[out] = rule, ins
        return out

    def _new(self, key: Key | None, readers: int) -> int:
        self.readers.append(readers)
        if key is not None:
            self.values[key] = len(self.readers) - 1
        return len(self.readers) - 1

    def _inputs(self, node: Any) -> list[Key]:
        return [(n, i) for n, i in node.next_functions if n in self.moving]


def _maker(node: Any, op: Op, custom: Mapping[type, Make]) -> Make:
    own = getattr(node, "_forward_cls", None)
    if own is not None:
        make = custom.get(own)
    else:
        name = node.name()
        stem = re.sub(r"Backward\d*$", "", name)
        if stem in SEVERAL:
            return SEVERAL[stem]
        make = NUMBERED.get(name) or ONE.get(stem)
    if make is None or not op.moving[0] or any(op.moving[1:]):
        raise Unsupported(node.name())
    return make


def _from_x(root: Any, x: Tensor) -> Iterator[Any]:
    """The nodes on a way from x to the root, each after those it reads."""
    leads: dict[Any, bool] = {}
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        children = [n for n, _ in node.next_functions if n is not None]
        if done:
            mine = hasattr(node, "variable") and node.variable is x
            leads[node] = mine or any(leads[n] for n in children)
            if leads[node]:
                yield node
        elif node not in leads:
            leads[node] = False
            stack += [(node, True), *((n, False) for n in children)]


def _numbered(order: list[tuple[Rule, tuple[int, ...], int]]) -> list[Step]:
    """Steps that know which of their inputs they are the last to read."""
    seen: set[int] = set()
    steps = []
    for rule, ins, out in reversed(order):
        last = tuple(sorted(set(ins) - seen))
        seen |= set(ins)
        steps.append(Step(rule, ins, out, last))
    return steps[::-1]

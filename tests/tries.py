"""What a chapter's kernel runs on each exercise: its solution with twenty seeds, written in every
form, and spoiled. One namespace of its own, so that no name of the chapter is touched."""

import contextlib
import io
import math
import random

import numpy as np
import torch

import mathkit as mk

SEEDS = 20
MANY = 1000  # from so many entries on an answer is written as an array only


def again(solution, check, space):
    """Judge the solution once more, with twenty seeds if anything in it is drawn; then the same
    answer in other forms, and wrong ones near it. `check` leaves its `verdict` in `space`."""
    for seed in range(SEEDS):
        calls, drawn = judged(solution, check, space, seed)
        verdict = space["verdict"]
        assert verdict.ok is True, f"seed {seed}: {verdict.message}"
        if not drawn:
            break
    for wanted, answers in ((True, forms), (False, spoiled)):
        for (answer, *rest), options in calls:
            for other in answers(answer, *rest[:1], **options):
                with contextlib.redirect_stdout(io.StringIO()):
                    verdict = mk.check(other, *rest, **options)
                assert verdict.ok is wanted, f"{other!r} should be {wanted}: {verdict.message}"


def judged(solution, check, space, seed):
    """The calls of mk.check, and whether a random number was drawn on the way."""
    calls, begun, real, plain = [], [], mk.check, torch.Generator

    def recorded(*args, **options):
        calls.append((args, options))
        return real(*args, **options)

    class Shifted(plain):
        def manual_seed(self, own):
            begun.append(own)
            return super().manual_seed(own + 1_000_003 * seed)

    shared = [g for g in space.values() if isinstance(g, plain)]
    for reseed in (
        torch.manual_seed,
        np.random.seed,
        random.seed,
        *(g.manual_seed for g in shared),
    ):
        reseed(seed)
    before = states(shared)
    mk.check, torch.Generator = recorded, Shifted
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(solution, space)
            exec(check, space)
    finally:
        mk.check, torch.Generator = real, plain
    return calls, bool(begun) or states(shared) != before


def states(shared):
    kept = [torch.get_rng_state(), *(g.get_state() for g in shared)]
    return [s.numpy().tobytes() for s in kept], repr(np.random.get_state()), random.getstate()


def forms(answer, truth, **options):
    """The same answer as a reader might have written it."""
    if callable(answer):
        return [lambda *x: tensor(plain(answer(*x)))]
    if isinstance(answer, str):
        return [answer.upper(), f" {answer} "]
    if isinstance(truth, set):
        return [set(answer), tuple(answer), np.array(answer[::-1]), torch.tensor(answer)]
    x = plain(answer)
    if len(entries(x)) > MANY:
        return [np.array(x), tensor(x)[None], tensor(rounded(x))]
    same = [x, tuples(x), rounded(x)]
    if not ragged(x):
        same += [np.array(x), tensor(x), tensor(x)[None]]
    return same


def spoiled(answer, truth, tol=mk.exercises.ROUNDED, decimals=None, up_to_sign=False, **options):
    """Wrong answers that are easily taken for right: one entry a little off, a count off by one."""
    if callable(answer):
        return [lambda *x: leaves(plain(answer(*x)), lambda y: 1.05 * y)]
    if isinstance(answer, str):
        return [f"{answer}{answer}", answer[:-1], 3, [answer]]
    x = plain(answer)
    flat = entries(x)
    most = max(map(abs, flat))
    tupled = isinstance(truth, tuple) or isinstance(answer, tuple)
    apart = tupled and not any(isinstance(y, list) for y in x)  # each a quantity of its own

    def slip(y):
        if isinstance(y, int):
            return 1
        size = abs(y) if apart else most
        return max(3 * tol * (size or min(most, 1.0)), 0 if decimals is None else 3 / 10**decimals)

    wrong = [[x, x], [x, 0.0], [], math.nan] if len(flat) < MANY else []
    wrong += [] if up_to_sign else [leaves(x, lambda y: -y)]
    for at in range(min(len(flat), 6)):
        for way in (1, -1):
            places = iter(range(len(flat)))
            off = {at: way}
            wrong.append(leaves(x, lambda y, p=places, o=off: y + o.get(next(p), 0) * slip(y)))
    return [tensor(w) for w in wrong] if len(flat) > MANY else wrong


def plain(x):
    """Lists and numbers."""
    x = x.tolist() if hasattr(x, "tolist") else x
    return [plain(y) for y in x] if isinstance(x, list | tuple) else x


def leaves(x, f):
    return [leaves(y, f) for y in x] if isinstance(x, list) else f(x)


def entries(x):
    return [z for y in x for z in entries(y)] if isinstance(x, list) else [x]


def tuples(x):
    return tuple(map(tuples, x)) if isinstance(x, list) else x


def rounded(x):
    return leaves(x, lambda y: y if isinstance(y, int) else float(f"{y:.3g}"))


def ragged(x):
    return isinstance(x, list) and len({np.shape(y) for y in x}) > 1


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)

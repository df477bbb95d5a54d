"""What an argument must be: whole numbers, numbers, tensors, pictures; else one sentence."""

from __future__ import annotations

import math
import numbers
import operator
import warnings
from typing import Any

import torch
from torch import Tensor

FAR = 5.0  # unclipped samples overshoot [-1, 1]; beyond this no picture is meant


def integer(n: Any, name: str, least: int = 0, most: int | None = None) -> int:
    """n as an integer in least ... most, else ValueError."""
    try:
        boolean = isinstance(n, bool) or getattr(n, "dtype", None) is torch.bool
        whole = least - 1 if boolean else operator.index(n)
    except TypeError:
        whole = least - 1
    if whole < least or (most is not None and whole > most):
        span = f">= {least}" if most is None else f"in {least} ... {most}"
        raise ValueError(f"{name} is an integer {span}, got {n!r}")
    return whole


def number(x: Any, name: str, least: float = -math.inf, most: float = math.inf) -> float:
    """x as a finite real number in [least, most], else ValueError; tensors of one number too."""
    scalar = isinstance(x, Tensor) and x.ndim == 0 and not x.is_complex()
    boolean = isinstance(x, bool) or (scalar and x.dtype is torch.bool)
    real = (scalar or isinstance(x, numbers.Real)) and not boolean
    try:
        value = float(x) if real else math.nan
    except OverflowError:
        value = math.nan
    if not (math.isfinite(value) and least <= value <= most):
        ends = f" in [{least:g}, {most:g}]" if max(-least, most) < math.inf else ""
        ends = ends or (f" >= {least:g}" if least > -math.inf else "")
        ends = ends or (f" <= {most:g}" if most < math.inf else "")
        raise ValueError(f"{name} is a finite number{ends}, got {told(x)}")
    return value


def tensor(x: Any, name: str, shape: str) -> Tensor:
    """x, if it is a tensor, else ValueError; shape: in words, as "(B, 3, 64, 64)"."""
    if isinstance(x, Tensor):
        return x
    hint = ""
    if hasattr(x, "__array__"):  # numpy's, and Pillow's pictures
        hint = f": torch.from_numpy(numpy.array({name})) makes one"
    raise ValueError(f"{name} is a tensor {shape}, got {told(x)}{hint}")


def finite(x: Tensor) -> bool:
    """Is every number of x finite?"""
    try:
        return bool(x.isfinite().all())
    except RuntimeError:  # inside torch.func.vmap no value may be read
        return True


def told(x: Any) -> str:
    """What came, in a few words."""
    if isinstance(x, Tensor) and x.ndim:
        return f"{x.dtype} {tuple(x.shape)}"
    plain = x is None or isinstance(x, bool | int | float | str | Tensor)
    words = repr(x) if plain else type(x).__name__
    return words if len(words) < 80 else f"{words[:77]}..."


def pictures(images: Tensor, name: str = "images", far: float = FAR) -> Tensor:
    """images, unless their values lie beyond [-far, far]; warns where they seem to be in [0, 1]."""
    low, high = (float(end) for end in images.detach().aminmax())
    if low < -far or high > far:
        raise ValueError(
            f"{name} are float32 in [-1, 1], got values from {low:.3g} to {high:.3g}: "
            "of 0 ... 255 take images / 127.5 - 1"
        )
    if 0 <= low < high <= 1:
        warnings.warn(
            f"{name} are meant in [-1, 1], and here no value is below 0: of what torchvision's "
            "ToTensor gives, in [0, 1], take 2 * images - 1",
            stacklevel=3,
        )
    return images

"""Options of the commands that work on a model: their names, and what is said of them."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def parser(command: str, about: str | None, out: str) -> argparse.ArgumentParser:
    """A parser for `python -m mathkit COMMAND`, whose one necessary option is --out."""
    made = argparse.ArgumentParser(
        prog=f"python -m mathkit {command}", description=about, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("--out", required=True, help=out)
    return made


def given(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    """The options that were given, by name."""
    return {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}


REGION = (
    "left,top,right,bottom as shares from 0 to 1 of what the model sees, which of a photograph is "
    "its central square"
)
ABOUT = {
    "model": "a built-in name, a diffusers folder or a Hub id",
    "revision": "of a Hub model",
    "image": "a picture file, the subject in place of sample 0",
    "prompt": "of a text model, or a class",
    "other": "a text to compare the prompt with",
    "guidance": "with the prompt",
    "negative": "the text or class that guidance leads away from",
    "region": f"of the masked edits: {REGION}",
    "samples": "how many are compared",
    "times": "from 0 to T - 1, each moved to the nearest of the sampling grid",
    "k": "directions of a basis",
    "strength": "of the largest move, in shares of |x_t|",
    "steps": "network calls of a sample and of an inversion",
    "tol": "of each svd, in shares of s_1",
    "seed": "of the first sample",
    "device": "auto, cpu, cuda or mps",
    "dtype": "float32, float16 or bfloat16",
    "at": "the layer whose output is h, by its name in the network",
}


def flag(value: Any) -> str:
    """A setting as it is written after its option."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def add_fields(
    parser: argparse.ArgumentParser,
    settings: type,
    leave_out: Sequence[str] = (),
    about: Mapping[str, str] | None = None,
) -> None:
    """An option for each field of a dataclass, `Settings`; what is not given is None. about: other
    words than ABOUT."""

    def numbers(text: str) -> tuple[float, ...]:
        return tuple(map(float, text.split(",")))

    def integers(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(",")))

    kinds: dict[str, Callable[[str], Any]] = {"region": numbers, "times": integers}
    for field in dataclasses.fields(settings):
        if field.name in leave_out:
            continue
        default: Any = field.default
        kind = kinds.get(field.name, str if default is None else type(default))
        shown = "none" if default is None else flag(default)
        shown = {"times": "900,700,500 of 1,000", "at": "its bottleneck"}.get(field.name, shown)
        default = "" if shown in ("none", "") else f" (default {shown})"
        words = (about or {}).get(field.name, ABOUT[field.name] + default)
        parser.add_argument(f"--{field.name}", type=kind, help=words)

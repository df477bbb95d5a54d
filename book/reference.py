"""The reference page: every public name of mathkit with its signature and docstring."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import mathkit as mk

HEAD = """# Reference

Every public name of `mathkit`, module by module. What stands under "The door" is also called
directly, as in `mk.svd`; the rest by its module, as in `mk.scores.wilson`.
"""


def modules() -> Iterator[ModuleType]:
    """The package's public modules by name."""
    for found in pkgutil.iter_modules(mk.__path__):
        if not found.name.startswith("_"):
            yield importlib.import_module(f"mathkit.{found.name}")


def members(module: ModuleType) -> list[tuple[str, Any]]:
    """Functions and classes written in the module, without exceptions, in its own order."""
    return [
        (name, x)
        for name, x in vars(module).items()
        if not name.startswith("_")
        and called(x)
        and not (inspect.isclass(x) and issubclass(x, Exception))
        and x.__module__ == module.__name__
        and x.__doc__
    ]


def called(x: Any) -> bool:
    return inspect.isfunction(inspect.unwrap(x)) or inspect.isclass(x)


def unquoted(parameter: str) -> str:
    """A parameter whose annotation is kept as a string, without that string's quotes."""
    return re.sub(r"^(\**\w+): '(.*?)'(?= = |$)", r"\1: \2", parameter)


def entry(name: str, x: Any) -> str:
    """One name: its call, wrapped an argument a line where it is long, then its docstring."""
    try:
        parts = [unquoted(str(p)) for p in inspect.signature(x).parameters.values()]
    except ValueError:  # a subclass of a builtin has none
        parts = ["..."]
    call = f"{name}({', '.join(parts)})"
    if len(call) > 88:
        call = f"{name}(\n    " + ",\n    ".join(parts) + ",\n)"
    return f"### `{name}`\n\n````text\n{call}\n\n{inspect.cleandoc(x.__doc__)}\n````\n"


def page() -> str:
    """The whole reference in Markdown."""
    door = [name for name, x in vars(mk).items() if called(x)]
    blocks = [HEAD, "## The door\n\n" + ", ".join(f"`mk.{name}`" for name in sorted(door)) + "\n"]
    for module in modules():
        listed = members(module)
        if listed:
            first, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
            block = f"````text\n{rest}\n````\n" if rest else ""
            blocks.append(f"## {module.__name__}\n\n{first}\n\n{block}")
            blocks += [entry(name, x) for name, x in listed]
    return "\n".join(blocks)

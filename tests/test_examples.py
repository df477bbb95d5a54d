"""The examples in the docstrings run, and print what they say they print."""

import doctest
import importlib
import inspect
import pkgutil
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

import mathkit as mk
from mathkit.draw import style


def modules() -> list[str]:
    found = pkgutil.walk_packages(mk.__path__, "mathkit.")
    return sorted(m.name for m in found if not m.name.endswith("__main__"))


def run(module: types.ModuleType) -> doctest.TestResults:
    """Of all its docstrings; doctest by itself leaves out what another module decorates."""
    decorated = (x for x in vars(module).values() if hasattr(x, "__wrapped__"))
    own = {id(f): f for f in map(inspect.unwrap, decorated) if f.__module__ == module.__name__}
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    tests = {t.name: t for t in finder.find(module, extraglobs={"mk": mk})}
    for f in own.values():
        name = f"{module.__name__}.{f.__qualname__}"
        tests |= {t.name: t for t in finder.find(f, name, module, extraglobs={"mk": mk})}
    for test in tests.values():
        runner.run(test)
    return runner.summarize(verbose=False)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.mark.parametrize("name", modules())
def test_examples_run(name: str) -> None:
    """Every one of them, with no word to stderr: warnings are errors here too."""
    module = importlib.import_module(name)
    result = run(module)
    assert result.failed == 0
    assert result.attempted == Path(str(module.__file__)).read_text("utf-8").count(">>> ")


def test_a_wrong_example_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = types.ModuleType("wrong", ">>> mk.matrix([[2.0]]).shape\n(1, 2)")
    assert run(wrong).failed == 1


def test_a_wrong_example_under_a_decorator_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    def square() -> None:
        """>>> 2 * 2
        5
        """

    wrong = types.ModuleType("wrong")
    square.__module__ = wrong.__name__
    wrong.square = style.styled(square)  # type: ignore[attr-defined]
    assert run(wrong).failed == 1


def faults(x: Callable[..., Any]) -> list[str]:
    """What the docstring of a public name lacks: its arguments by name, what it returns, a use."""
    lines = inspect.getdoc(x).splitlines() if x.__doc__ else []
    parameters = [p for p in inspect.signature(x).parameters if p != "self"]
    told = {name.strip() for line in lines for name in line.partition(":")[0].split(",")
            if line.startswith("    ") and not line.startswith("     ")}  # fmt: skip
    lacking = [name for name in parameters if name not in told]
    heads = ["Args:"] * bool(parameters) + ["Returns:"] * (not inspect.isclass(x)) + [">>> "]
    return lacking + [head for head in heads if not any(line.startswith(head) for line in lines)]


PUBLIC = [name for name in mk.__all__ if not isinstance(getattr(mk, name), types.ModuleType)]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_says_what_it_takes_and_gives(name: str) -> None:
    assert not faults(getattr(mk, name))


def test_a_poor_docstring_is_found() -> None:
    def half(x: float, by: float) -> float:
        """x / by.

        Args:
            x: a number.

        >>> half(2.0, 2.0)
        1.0
        """
        return x / by

    assert faults(half) == ["by", "Returns:"]
    half.__doc__ = "x / by.\n\nReturns: their ratio."
    assert faults(half) == ["x", "by", "Args:", ">>> "]
    half.__doc__ = None
    assert faults(half) == ["x", "by", "Args:", "Returns:", ">>> "]

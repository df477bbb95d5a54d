"""The examples in the docstrings run, and print what they say they print."""

import doctest
import importlib
import pkgutil
import types

import pytest

import mathkit as mk


def modules() -> list[str]:
    found = pkgutil.walk_packages(mk.__path__, "mathkit.")
    return sorted(m.name for m in found if not m.name.endswith("__main__"))


@pytest.mark.parametrize("name", modules())
def test_examples_run(name: str) -> None:
    """With no word to stderr: warnings are errors here too."""
    module = importlib.import_module(name)
    assert doctest.testmod(module, extraglobs={"mk": mk}).failed == 0


def test_a_wrong_example_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = types.ModuleType("wrong", ">>> mk.matrix([[2.0]]).shape\n(1, 2)")
    assert doctest.testmod(wrong, extraglobs={"mk": mk}).failed == 1

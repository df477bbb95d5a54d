"""Commands for your own model: `python -m mathkit COMMAND`."""

import argparse
import importlib
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

COMMANDS = {
    "info": ("versions, device, threads and weights' hashes, for a bug report", "mathkit.data"),
    "atlas": (
        "local bases for many samples and times, alone or under torchrun, resuming",
        "mathkit.tools.atlas",
    ),
    "report": (
        "the papers' experiments on one model, your own picture included, as a page",
        "mathkit.tools.report",
    ),
    "edit": (
        "a photograph along a direction of your choice, from file to file",
        "mathkit.tools.edit",
    ),
}


def run(package: str, commands: Mapping[str, tuple[str, str]], argv: Sequence[str] | None) -> int:
    """Run one of a package's commands; its module, imported only now, has a `main` of words.

    0 done, 1 failed with a line that says why, 130 stopped by Ctrl-C.
    """
    epilog = "\n".join(f"  {name:<9} {what}" for name, (what, _) in commands.items())
    parser = argparse.ArgumentParser(
        f"python -m {package}", description=f"commands:\n{epilog}", allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("command", choices=commands, metavar="COMMAND")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="passed to it")
    args = parser.parse_args(argv)
    try:
        with _each_said_once():
            importlib.import_module(commands[args.command][1]).main(args.rest)
    except KeyboardInterrupt:
        print(f"\n{args.command}: stopped; the same command continues from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"{args.command}: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _each_said_once() -> Iterator[None]:
    """Within it a warning is shown once, whatever its numbers."""
    said, shown = set[str](), warnings.showwarning

    def show(message: Any, *where: Any, **more: Any) -> None:
        words = re.sub(r"[-+]?\d[\d.e+-]*", "#", str(message))
        if words not in said:
            said.add(words)
            shown(message, *where, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def main(argv: Sequence[str] | None = None) -> int:
    return run("mathkit", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())

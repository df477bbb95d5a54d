"""Commands for what takes longer than a notebook's minute: `python -m mathkit COMMAND`."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

COMMANDS = {
    "info": "versions, device, threads and weights' hashes, for a bug report",
    "patient": "train ALICE, her factor reader and her understudy, resuming from runs/",
    "ship": "copy trained weights from runs/ to data/ and renew the manifest",
    "atlas": "local bases for many samples and times, alone or under torchrun, resuming",
    "report": "the papers' experiments on one model, your own picture included, as a page",
    "results": "measure the stored tables (all, or the NAMEs given), resuming where it stopped",
}


def call(module: str, function: str, *args: object) -> Any:
    """mathkit.<module>.<function>(*args), imported only now."""
    found: Callable[..., Any] = getattr(importlib.import_module(f"mathkit.{module}"), function)
    return found(*args)


def run(command: str, rest: Sequence[str]) -> None:
    if rest and command in ("info", "ship"):
        raise ValueError(f"takes no arguments, got {' '.join(rest)}")
    if command == "info":
        return print(call("weights", "info"))
    if command == "ship":
        return call("training", "ship")
    if command == "patient":
        return call("training", "main", list(rest))
    if command in ("atlas", "report"):
        return call(command, "main", list(rest))
    return call("jobs", "run", list(rest))


def parser() -> argparse.ArgumentParser:
    epilog = "\n".join(f"  {name:<9} {what}" for name, what in COMMANDS.items())
    out = argparse.ArgumentParser(
        "python -m mathkit", description=f"commands:\n{epilog}", allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    out.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    out.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="passed to the command")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 1 failed with a line that says why, 130 stopped by Ctrl-C."""
    args = parser().parse_args(argv)
    try:
        run(args.command, args.rest)
    except KeyboardInterrupt:
        print(f"\n{args.command}: stopped; the same command continues from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"{args.command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

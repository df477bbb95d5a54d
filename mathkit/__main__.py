"""Commands for your own model: `python -m mathkit COMMAND`."""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence

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
        importlib.import_module(commands[args.command][1]).main(args.rest)
    except KeyboardInterrupt:
        print(f"\n{args.command}: stopped; the same command continues from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"{args.command}: {error}", file=sys.stderr)
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run("mathkit", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())

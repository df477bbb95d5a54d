"""Commands that make what a clone holds: `python -m studies COMMAND`."""

import sys
from collections.abc import Sequence

from mathkit.__main__ import run

COMMANDS = {
    "patient": (
        "train ALICE, her factor reader and her understudy, resuming from runs/",
        "studies.train",
    ),
    "ship": ("copy trained weights from runs/ to data/ and renew the manifest", "studies.ship"),
    "results": (
        "measure the stored tables (all, or the NAMEs given), resuming where it stopped",
        "studies.jobs",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    return run("studies", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())

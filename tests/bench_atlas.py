"""One atlas of ALICE made by one process and by two, in turns: seconds, and the ratio.

python tests/bench_atlas.py              two rounds of eight samples at three times
python tests/bench_atlas.py --rounds 5

The smallest of the rounds counts; starting Python and loading the model is in it for both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = ["-m", "mathkit", "atlas", "--samples", "0:8", "--k", "5", "--device", "cpu"]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ROOT = Path(__file__).resolve().parent.parent


def seconds(before: list[str], out: str) -> float:
    began = time.perf_counter()
    words = [sys.executable, *before, *WORDS, "--out", out]
    one = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(words, cwd=ROOT, env=one, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds):
            for count, before in ((1, []), (2, TWO)):
                found[count].append(seconds(before, f"{folder}/{count}-{i}"))
    one, two = (min(found[count]) for count in (1, 2))
    print(
        f"atlas, 24 bases: one process {one:.0f} s, two {two:.0f} s: {one / two:.2f} times as fast"
    )


if __name__ == "__main__":
    main()

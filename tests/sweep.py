"""The numerical unit tests again, as other processors would compute them and on other draws.

python tests/sweep.py [--seeds 3] [FILES]

Each run is pytest in a process of its own: instruction sets of MKL, oneDNN, OpenBLAS and torch, one
thread and two, and shifts of every random number (MATHKIT_SEEDS, see conftest.py). Prints a table
and fails if any run does. No test may rest on the last bits of a BLAS or on the luck of a seed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FILES = (
    "linear_map jacobian tape svd lockstep subspaces metric diffusion encoder model eigenfaces "
    "reader analysis puppets scores superposition dictionaries standins"
).split()
OLD = {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"}
PROCESSORS = {
    "SSE4": OLD | {"ATEN_CPU_CAPABILITY": "default", "OPENBLAS_CORETYPE": "Nehalem"},
    "AVX": {
        "MKL_ENABLE_INSTRUCTIONS": "AVX",
        "ONEDNN_MAX_CPU_ISA": "AVX",
        "OPENBLAS_CORETYPE": "Sandybridge",
    },
    "AVX2": {
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "MKL, any processor alike": {"MKL_CBWR": "COMPATIBLE"},
    "two threads": {"OMP_NUM_THREADS": "2"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds", type=int, default=3, help="how many shifts of the random numbers"
    )
    parser.add_argument("files", nargs="*", default=FILES, help="as in test_NAME.py")
    args = parser.parse_args()
    runs = PROCESSORS | {f"seeds {s}": {"MATHKIT_SEEDS": str(s)} for s in range(1, args.seeds + 1)}
    failed = [name for name, setting in runs.items() if not passes(name, setting, args.files)]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def passes(name: str, setting: dict[str, str], files: list[str]) -> bool:
    paths = [str(HERE / f"test_{file}.py") for file in files]
    marks = "not (long or patient or notebook or browser or slow or gpu)"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "logical", "--maxprocesses", "4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | setting
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--no-header", "--tb=line", "-m", marks, *paths],
        env=environment, cwd=HERE.parent, capture_output=True, text=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    print(f"{name:26} {lines[-1] if lines else done.stderr[-200:]}", flush=True)
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            print("   ", line[:160], flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()

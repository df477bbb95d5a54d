"""kernel.c -> kernel.wasm, by the C compiler of ziglang (`pip install -e .[kernel]`)."""

import subprocess
import sys
import tempfile
from pathlib import Path

from mathkit import data

FOLDER = Path(__file__).parent
SOURCE, KERNEL = FOLDER / "kernel.c", FOLDER / "kernel.wasm"
FLAGS = (
    "--target=wasm32-freestanding", "-O3", "-msimd128", "-mbulk-memory", "-nostdlib", "-s",
    "-Wall", "-Wextra", "-Werror",
    "-Wl,--no-entry", "-Wl,--import-memory", "-Wl,--export=__heap_base",
)  # fmt: skip


def compiled() -> bytes:
    """The kernel; the same source and the same ziglang give the same bytes on every machine.

    Raises ModuleNotFoundError without ziglang, CalledProcessError where the source has a fault.
    """
    import ziglang

    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / KERNEL.name
        zig = [sys.executable, "-m", ziglang.__name__, "cc"]
        subprocess.run([*zig, *FLAGS, "-o", str(to), SOURCE.name], cwd=FOLDER, check=True)
        return to.read_bytes()


if __name__ == "__main__":
    data.store(KERNEL, compiled())
    print(f"{KERNEL.name}: {KERNEL.stat().st_size} bytes")

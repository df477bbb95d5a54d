"""kernel.c -> kernel.wasm, by the C compiler in the package ziglang (`pip install -e .[kernel]`)."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCE, KERNEL = FOLDER / "kernel.c", FOLDER / "kernel.wasm"
FLAGS = (
    "--target=wasm32-freestanding", "-O3", "-msimd128", "-mbulk-memory", "-nostdlib", "-s",
    "-Wall", "-Wextra", "-Werror",
    "-Wl,--no-entry", "-Wl,--import-memory", "-Wl,--export=__heap_base",
)  # fmt: skip


def compiled(to: Path) -> Path:
    """The kernel, compiled to the file `to`; the same source and version give the same bytes."""
    command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, "-o", str(to), SOURCE.name]
    subprocess.run(command, cwd=FOLDER, check=True)
    return to


if __name__ == "__main__":
    print(f"{compiled(KERNEL)}: {KERNEL.stat().st_size} bytes")

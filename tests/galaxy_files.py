"""A stand-in for the galaxies' wheel: files of the same layout with random numbers."""

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest

from mathkit import data
from mathkit.diffusion import galaxies

CHANNELS, PATCH, SIDE, WIDE, DEEP, BLOCKS, LAST = 6, 4, 16, 10, 12, 3, 10.0
PATCHES = (SIDE // PATCH) ** 2


def arrays(seed: int = 0) -> list[np.ndarray]:
    """In the order in which equinox writes a network's leaves."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)

    C, P = CHANNELS, PATCHES
    found = [draw(C, 2, PATCH, PATCH), draw(C, 1, 1), draw(1, C, PATCH, PATCH), draw(1, 1, 1)]
    for _ in range(BLOCKS):
        found += [draw(WIDE, P), draw(WIDE), draw(P, WIDE), draw(P)]
        found += [draw(DEEP, C), draw(DEEP), draw(C, DEEP), draw(C)]
        found += [1 + draw(C, P), draw(C, P), 1 + draw(P, C), draw(P, C)]
    return [*found, 1 + draw(C, P), draw(C, P), np.array(LAST)]


def write(path: Path, content: list[np.ndarray]) -> Path:
    with open(path, "wb") as file:
        for array in content:
            np.save(file, array)
    return path


def wheel(site: Path, version: str, files: dict[str, list[np.ndarray]]) -> Path:
    """What pip leaves of such a wheel in `site`; importing it fails, as without JAX."""
    (site / "galaxygrad").mkdir(parents=True)
    (site / "galaxygrad" / "__init__.py").write_text("raise ImportError('No module named jax')\n")
    for name, content in files.items():
        write(site / "galaxygrad" / name, content)
    info = site / f"galaxygrad-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: galaxygrad\nVersion: {version}\n")
    return site


def installed(
    monkeypatch: pytest.MonkeyPatch,
    site: Path,
    files: dict[str, list[np.ndarray]],
    version: str = "0.1.9",
    known: bool = True,
) -> dict[str, str]:
    """As if such a wheel were installed; known: its files are the expected ones. Their hashes."""
    wheel(site, version, files)
    (found,) = importlib.metadata.distributions(path=[str(site)])
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found.version)
    hashes = {name: data.sha256(site / "galaxygrad" / name) for name in files}
    for name, (file, _) in [*galaxies.FILES.items()]:
        if known and file in hashes:
            monkeypatch.setitem(galaxies.FILES, name, (file, hashes[file]))
    return hashes

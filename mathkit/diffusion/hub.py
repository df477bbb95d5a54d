"""A model's files: from a local diffusers folder, or from the Hub."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

from mathkit import data
from mathkit.diffusion.networks import network_shape

STEM = "diffusion_pytorch_model"
KINDS = ("UNet2DModel", "UNet2DConditionModel")
PARTS = {"vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}  # of a text model
READ = ("", "unet", "scheduler", "tokenizer", *PARTS)
# Hub repositories whose files we know: without a revision this commit is taken.
PUBLISHED = {
    ("google/ddpm-celebahq-256", "cd5c944777ea2668051904ead6cc120739b86c4d"): (
        "efff89712093ad060ce99d9b461bbe542b49d8dd4ce30f23fe5761dca292361d"
    )
}
PATIENCE = 10.0  # seconds for the Hub's first answer
BUILT_IN = "built-in"  # begins the source of such a model


def import_transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise ImportError(
            'text models need the package transformers: pip install "transformers>=4.50". '
            'The built-in model, mk.load_model("alice"), does not'
        ) from None


@dataclass(frozen=True)
class ModelFiles:
    """A diffusers model's two configurations, its weights files and where they come from.

    parts: the weights of a text model's "vae" and "text_encoder"; empty for a pixel model.
    """

    folder: Path
    unet: dict[str, Any]
    scheduler: dict[str, Any]
    weights: Path
    parts: dict[str, Path]
    revision: str
    source: str


def model_files(name: str | Path, revision: str | None = None, half: bool = False) -> ModelFiles:
    """The files of a built-in model, a local diffusers folder or a Hub repository.

    revision (Hub only): a branch, tag or commit. half: fp16 files before float32 ones. The
    answer's revision is the Hub's commit, or "sha256:..." of the U-Net's weights. Raises
    FileNotFoundError, ValueError or (Hub) OSError, each with what to do.
    """
    known = data.built_in()
    if str(name) not in known and not Path(name).is_dir() and _hub_id(str(name)):
        folder, commit = hub(str(name), revision, half)
        return _layout(folder, str(name), commit, half)
    if revision is not None:
        raise ValueError(f"revision belongs to Hub repositories, and {str(name)!r} is not one")
    if str(name) in known:
        return _layout(data.find_network(str(name)), f"{BUILT_IN} {name}")
    if not Path(name).is_dir():
        raise FileNotFoundError(
            f"no model {str(name)!r}: expected a built-in name ({', '.join(known) or 'none yet'}), "
            "a local diffusers folder, or a Hub id owner/name"
        )
    return _layout(Path(name), str(name), half=half)


def _hub_id(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None


def hub(name: str, revision: str | None = None, half: bool = False) -> tuple[Path, str]:
    """Fetch (or find in the cache) a Hub repository's model: its folder and its commit.

    One weights file a network, safetensors before pickles. A commit whose files are in the cache
    needs no network; where only fp16 ones are and others are wanted, the Hub is asked for them
    first. Raises OSError within seconds where neither helps, and ValueError or
    FileNotFoundError for a model of another kind, before its weights are fetched.
    """
    pinned = next((commit for known, commit in PUBLISHED if known == name), None)
    wanted = revision or pinned
    kept = _cached(name, wanted)
    files = _chosen(kept, half) if kept and _described(kept) else [None]
    whole = kept is not None and None not in files
    rounded = not half and any(".fp16." in (file or "") for file in files)
    if kept is None or not whole or rounded or kept.name != wanted:
        try:
            kept = _fetched(name, wanted, half)
        except HubError:
            if kept is None or not whole:
                raise
    if kept.name != wanted:
        print(f"{name} at commit {kept.name}: ask for that revision to have the same again")
    return kept, kept.name


class HubError(OSError):
    """The Hub gave no answer, or not the files."""


@contextmanager
def _asking(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what the client raises has no base class in common
        raise HubError(
            f"{name!r} is no folder, is not whole in the local cache, and was not fetched from the "
            f"Hub ({type(error).__name__}: {data.first_line(error)}). "
            'Without a network use the built-in model, mk.load_model("alice"); with one, try '
            "again: what has been fetched is kept"
        ) from error


def _cached(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for config in ("unet/config.json", "config.json"):
        found = try_to_load_from_cache(name, config, revision=revision)
        if isinstance(found, str):
            return Path(found.removesuffix(config))
    return None


def _fetched(name: str, revision: str | None, half: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    with _asking(name):
        # Asked first: this call alone does not retry for half a minute without a network.
        info = HfApi().model_info(name, revision=revision, timeout=PATIENCE)
        names = [file.rfilename for file in info.siblings or []]
        texts = [n for n in names if n.endswith((".json", ".txt")) and n.rpartition("/")[0] in READ]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=texts))
    root, *_ = _configs(folder)
    files = [_choice(names.__contains__, part, half) for part in (root, *PARTS)]
    with _asking(name):
        snapshot_download(name, revision=folder.name, allow_patterns=[f for f in files if f])
    return folder


def _choice(there: Callable[[str], bool], part: str, half: bool) -> str | None:
    """The best weights file of a network ("" for one at the root) of those that are there."""
    stems = ("model", "pytorch_model") if part == "text_encoder" else (STEM, STEM)
    for stem, suffix in zip(stems, (".safetensors", ".bin"), strict=True):
        for variant in (".fp16", "") if half else ("", ".fp16"):
            name = (PurePosixPath(part) / f"{stem}{variant}{suffix}").as_posix()
            if there(name):
                return name
    return None


def _described(folder: Path) -> bool:
    """Whether a folder holds every configuration that its model needs."""
    try:
        _configs(folder)
    except FileNotFoundError:
        return False
    return True


def _chosen(folder: Path, half: bool) -> list[str | None]:
    """The best weights file of each network that a folder has a configuration of."""
    parts = [part for part in ("unet", *PARTS) if (folder / part / "config.json").is_file()]
    parts = parts if "unet" in parts else [""]
    return [_choice(lambda name: (folder / name).is_file(), part, half) for part in parts]


def _layout(folder: Path, source: str, commit: str | None = None, half: bool = False) -> ModelFiles:
    """Read either layout: unet/ and scheduler/ below the folder, or everything at its root."""
    root, unet, scheduler, parts = _configs(folder)
    files: dict[str, Path] = {}
    for part in (root, *parts):
        chosen = _choice(lambda n: (folder / n).is_file(), part, half)
        if chosen is None:
            stem = "model" if part == "text_encoder" else STEM
            raise FileNotFoundError(f"{folder / part} holds no {stem}.safetensors (or .bin)")
        files[part] = folder / chosen
    main, known = files.pop(root), PUBLISHED.get((source, commit or ""))
    digest = data.sha256(main) if known or commit is None else None
    if known and main.suffix == ".bin" and digest != known:
        raise ValueError(f"{main} is not the published file of SHA-256 {known}: got {digest}")
    pickled = [p for p in (main, *files.values()) if p.suffix == ".bin"]
    note = ", a pickle read weights-only" if pickled else ""
    note += ", of its fp16 files" if ".fp16." in main.name else ""
    note += ", of the published SHA-256" if known and digest == known else ""
    revision = commit or f"sha256:{digest}"
    return ModelFiles(folder, unet, scheduler, main, files, revision, source + note)


def _configs(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """Where the U-Net lies, its and the scheduler's configurations, and what else is needed."""
    root = "unet" if (folder / "unet" / "config.json").is_file() else ""
    unet = _config(folder, [folder / root / "config.json"])
    places = [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
    scheduler, kind = _config(folder, places), unet.get("_class_name")
    if kind not in KINDS:
        raise ValueError(f"{folder} is a {kind}: mathkit reads {' and '.join(KINDS)}")
    network_shape(SimpleNamespace(**unet))
    if kind == "UNet2DModel":
        index = folder / "model_index.json"
        if index.is_file() and {"vae", "vqvae"} & read_json(index).keys():
            raise ValueError(
                f"{folder} is a latent model without text, which mathkit does not read"
            )
        return root, unet, scheduler, ()
    for part, wanted in PARTS.items():
        config = _config(folder, [folder / part / "config.json"])
        found = config.get("_class_name") or (config.get("architectures") or ["?"])[0]
        if found != wanted:
            raise ValueError(f"{folder / part} is a {found}: mathkit reads {wanted}")
    if not (folder / "tokenizer").is_dir():
        raise FileNotFoundError(f"{folder} holds no tokenizer/, which a text model needs")
    import_transformers()  # if it is missing, say so before weights are fetched
    return root, unet, scheduler, tuple(PARTS)


def _config(folder: Path, places: list[Path]) -> dict[str, Any]:
    for path in places:
        if path.is_file():
            return read_json(path)
    wanted = " or ".join(p.relative_to(folder).as_posix() for p in places)
    held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(f"{folder} is no diffusers model: no {wanted} in it (it holds {held})")


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}): fetch the folder again") from None

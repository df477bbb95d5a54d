"""Load a diffusion model: a built-in one, a local diffusers folder, or a Hub repository."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import weights
from .models import UNetModel

STEM = "diffusion_pytorch_model"
PUBLISHED = {
    ("google/ddpm-celebahq-256", "cd5c944777ea2668051904ead6cc120739b86c4d"): (
        "efff89712093ad060ce99d9b461bbe542b49d8dd4ce30f23fe5761dca292361d"
    )
}


def load_model(
    name: str | Path,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> UNetModel:
    """A pixel diffusion model: a built-in name ("alice"), a local diffusers folder or a Hub id.

    device: "auto" is CUDA where there is one, else the CPU; "mps" only when asked. dtype: of the
    network, default float32. revision: of a Hub repository; `p.revision` records the commit found.
    Reads the folder of `DDPMPipeline.save_pretrained` and the older layout with everything at the
    root; built-in files are hash-checked, pickles read weights-only.
    Raises FileNotFoundError for no such model, ValueError for one that is not a UNet2DModel with a
    beta schedule or whose files differ, OSError (naming the built-in model) without a network.
    """
    files, place = model_files(name, revision), _device(device)
    unet = _network(files, place, dtype or torch.float32)
    abar, prediction = _schedule(files.scheduler)
    return UNetModel(unet, abar, prediction, files.revision, files.source)


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = torch.device(device)
    there = {"cpu": True, "cuda": torch.cuda.is_available()}
    if not there.get(place.type, torch.backends.mps.is_available()):
        raise ValueError(f'there is no device {device}: use "auto", or "cpu"')
    return place


def _network(files: ModelFiles, device: torch.device, dtype: torch.dtype) -> nn.Module:
    from diffusers import UNet2DModel

    kind = files.unet.get("_class_name")
    if kind != "UNet2DModel":
        raise ValueError(f"{files.source} is a {kind}: mathkit reads UNet2DModel, of pixel models")
    read = weights.read(files.weights).items()
    state = {_renamed(key): value.to(device, dtype) for key, value in read}
    with torch.device("meta"):  # no random weights first: quicker, and no draw from the global seed
        unet = UNet2DModel.from_config(files.unet)
    try:
        unet.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{files.weights} does not fit its config.json: {error}") from None
    return unet


def _renamed(key: str) -> str:
    """Attention weights by their names of today; files from before 2023 have older ones."""
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return ".".join(names.get(part, part) for part in key.split("."))


def _schedule(config: dict[str, Any]) -> tuple[Tensor, str]:
    from diffusers import DDPMScheduler

    if "beta_schedule" not in config and not config.get("trained_betas"):
        raise ValueError(
            f"expected a scheduler with betas (DDPM, DDIM, ...), got {config.get('_class_name')}"
        )
    scheduler = DDPMScheduler.from_config(config)
    return scheduler.alphas_cumprod, config.get("prediction_type", "epsilon")


@dataclass(frozen=True)
class ModelFiles:
    """A diffusers model's two configurations, its weights file and where they come from."""

    unet: dict[str, Any]
    scheduler: dict[str, Any]
    weights: Path
    revision: str
    source: str


def model_files(name: str | Path, revision: str | None = None) -> ModelFiles:
    """The files of a built-in model, a local diffusers folder or a Hub repository.

    revision (Hub only): a branch, tag or commit. The answer's revision is the Hub's commit, or
    "sha256:..." of the weights file. Raises FileNotFoundError, ValueError or (Hub) OSError, each
    with what to do.
    """
    known = weights.built_in()
    if str(name) not in known and not Path(name).is_dir() and _hub_id(str(name)):
        folder, commit = hub(str(name), revision)
        return _layout(folder, str(name), commit)
    if revision is not None:
        raise ValueError(f"revision belongs to Hub repositories, and {str(name)!r} is not one")
    if str(name) in known:
        return _layout(weights.find(str(name)), f"built-in {name}")
    if not Path(name).is_dir():
        raise FileNotFoundError(
            f"no model {str(name)!r}: expected a built-in name ({', '.join(known) or 'none yet'}), "
            "a local diffusers folder, or a Hub id owner/name"
        )
    return _layout(Path(name), str(name))


def _hub_id(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None


def hub(name: str, revision: str | None = None) -> tuple[Path, str]:
    """Fetch (or find in the cache) a Hub repository's U-Net: its folder and its commit.

    Safetensors are preferred; a .bin is fetched only where there are none, and its hash is checked
    where it is known. Raises OSError within seconds where there is no network.
    """
    from huggingface_hub import snapshot_download

    parts = ("*.json", f"{STEM}.safetensors")
    wanted = [place + part for place in ("", "unet/", "scheduler/") for part in parts]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        if not any(folder.rglob("*.safetensors")):
            wanted += [f"{STEM}.bin", f"unet/{STEM}.bin"]
            snapshot_download(name, revision=folder.name, allow_patterns=wanted)
    except OSError as error:
        raise OSError(
            f"{name!r} is not in the local cache and the Hub gave no answer "
            f"({type(error).__name__}: {weights.first_line(error)}), nor is there such a folder. "
            'Without a network use the built-in model, mk.load_model("alice")'
        ) from error
    return folder, folder.name


def _layout(folder: Path, source: str, commit: str | None = None) -> ModelFiles:
    """Read either layout: unet/ and scheduler/ below the folder, or everything at its root."""
    root = folder / "unet" if (folder / "unet" / "config.json").is_file() else folder
    unet = _config(folder, [root / "config.json"])
    places = [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
    scheduler = _config(folder, places)
    found = [p for s in (".safetensors", ".bin") if (p := root / (STEM + s)).is_file()]
    if not found:
        raise FileNotFoundError(f"{root} holds no {STEM}.safetensors (or .bin)")
    digest, known = weights.sha256(found[0]), PUBLISHED.get((source, commit or ""))
    if known and found[0].suffix == ".bin" and digest != known:
        raise ValueError(f"{found[0]} is not the published file of SHA-256 {known}: got {digest}")
    note = ", a pickle read weights-only" if found[0].suffix == ".bin" else ""
    note += ", of the published SHA-256" if digest == known else ""
    return ModelFiles(unet, scheduler, found[0], commit or f"sha256:{digest}", source + note)


def _config(folder: Path, places: list[Path]) -> dict[str, Any]:
    for path in places:
        if path.is_file():
            return _json(path)
    wanted = " or ".join(p.relative_to(folder).as_posix() for p in places)
    held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(f"{folder} is no diffusers model: no {wanted} in it (it holds {held})")


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}): fetch the folder again") from None

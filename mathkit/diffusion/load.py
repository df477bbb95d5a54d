"""Load a diffusion model: a built-in one, a local diffusers folder, or a Hub repository.

No file of a repository is ever run: configurations are JSON, weights are tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mathkit import data
from mathkit.diffusion import galaxies
from mathkit.diffusion.hub import (
    BUILT_IN,
    KINDS,
    PARTS,
    import_transformers,
    model_files,
    read_json,
)
from mathkit.diffusion.model import Model
from mathkit.diffusion.networks import UNetModel, unwrapped
from mathkit.diffusion.text import TextModel

HALF = (torch.float16, torch.bfloat16)
CLIPPING = {"DDPMScheduler", "DDIMScheduler"}  # unless they say otherwise
LEFT_OUT = {"safety_checker", "image_encoder"}  # of a pipeline: they have no part in x_t


def load_model(
    name: str | Path | Any,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    *,
    scheduler: Any = None,
) -> UNetModel:
    """A diffusion model: a built-in one, a local diffusers folder, a Hub repository, or one in
    memory.

    Pixel models (UNet2DModel, as google/ddpm-celebahq-256) and latent text models (Stable Diffusion
    1.x and 2.x: `p.prompted` binds a text; needs the package transformers). Reads the folder of
    `save_pretrained` and the older layout with everything at the root; built-in files are
    hash-checked, pickles read weights-only, safety checkers left out. What is in memory keeps its
    device and dtype and is not changed: the model shares its weights.

    Args:
        name: "alice", "galaxies" or "galaxies-32" (of another package: `pip install --no-deps
            galaxygrad==0.1.9`), a folder, a Hub id, a diffusers pipeline, or a network.
        device: "auto" is CUDA where there is one, else the CPU; for a built-in model always the
            CPU, where the book's pictures and tables are made; "mps" only when asked (it lacks the
            float64 of some analyses).
        dtype: of the U-Net, default float32; with a half one the repository's fp16 files are taken
            where there are some, while VAE and text encoder work in float32.
        revision: of a Hub repository, default a known commit or the newest, which is then printed.
        scheduler: of a network in memory, e.g. the DDPMScheduler it was trained with.

    Returns: a model; `p.revision` records the commit.
    Raises FileNotFoundError for no such model, ValueError for one of another kind or whose files
    differ, OSError (naming the built-in model) without a network, ImportError without transformers
    or the galaxies' package.

    >>> mk.load_model("alice").shape
    torch.Size([3, 64, 64])
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype is a floating-point type, as torch.float16, got {dtype!r}")
    if not isinstance(name, str | Path):
        return _in_memory(name, scheduler, (device, dtype, revision) == ("auto", None, None))
    if scheduler is not None:
        raise ValueError("scheduler belongs to a network in memory: a folder has its own")
    if name in galaxies.FILES and not Path(name).is_dir():
        if revision is not None:
            raise ValueError(f"revision belongs to Hub repositories, and {name!r} is not one")
        place = _device("cpu" if device == "auto" else device)
        return galaxies.load_galaxies(str(name), place, dtype or torch.float32)
    files = model_files(name, revision, dtype in HALF)
    place = _device("cpu" if device == "auto" and files.source.startswith(BUILT_IN) else device)
    dtype = dtype or torch.float32
    unet = _network(files.unet, files.weights, place, dtype)
    abar, prediction = _schedule(files.scheduler)
    if not files.parts:
        p = UNetModel(unet, abar, prediction, files.revision, files.source)
        return _bounded(p, files.scheduler)
    fine = torch.promote_types(dtype, torch.float32)
    vae = _network(read_json(files.folder / "vae/config.json"), files.parts["vae"], place, fine)
    embed = _text_encoder(files.folder, files.parts["text_encoder"], place, fine)
    return TextModel(unet, abar, vae, embed, prediction, files.revision, files.source)


def _in_memory(thing: Any, scheduler: Any, as_it_is: bool) -> UNetModel:
    """A model of a diffusers pipeline or network."""
    parts = dict(getattr(thing, "components", {"unet": thing}))
    unet = parts.get("unet")
    kind = type(unwrapped(unet)).__name__ if isinstance(unet, nn.Module) else ""
    if not isinstance(unet, nn.Module) or kind not in KINDS:
        raise ValueError(
            f"expected a name, a folder, or a diffusers pipeline or network of {' or '.join(KINDS)}"
            f", got {type(thing).__name__}"
        )
    if not as_it_is:
        raise ValueError(
            "a model in memory keeps its device and dtype, and has no revision: move it first, "
            "network.to(device, dtype)"
        )
    scheduler = parts.get("scheduler") if scheduler is None else scheduler
    if not hasattr(scheduler, "config"):
        raise ValueError(
            "a network alone has no noise levels: give scheduler=, the one it was trained with, "
            f"e.g. diffusers.DDPMScheduler(), got {type(scheduler).__name__}"
        )
    config = dict(scheduler.config)
    abar, prediction = _schedule(config)
    more = {name for name, part in parts.items() if isinstance(part, nn.Module)} - LEFT_OUT
    if kind == KINDS[0] and more == {"unet"}:
        return _bounded(UNetModel(unet, abar, prediction), config)
    if kind == KINDS[1] and more == {"unet", *PARTS}:
        embed = _embedding(parts["tokenizer"], parts["text_encoder"])
        return TextModel(unet, abar, parts["vae"], embed, prediction)
    raise ValueError(
        f"expected a {KINDS[0]} alone, or a {KINDS[1]} with {' and '.join(PARTS)}, got a pipeline "
        f"of {', '.join(sorted(more))}"
    )


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f'device is "auto", "cpu", "cuda" or "mps", got {device!r}') from None
    there = {"cpu": True, "cuda": torch.cuda.is_available()}
    if not there.get(place.type, torch.backends.mps.is_available()):
        raise ValueError(f'there is no device {device}: use "auto", or "cpu"')
    return place


def _network(config: dict[str, Any], file: Path, device: torch.device, dtype: torch.dtype) -> Any:
    import diffusers

    read = data.read_tensors(file).items()
    state = {_renamed(key): value.to(device, dtype) for key, value in read}
    with torch.device("meta"):  # no random weights first: quicker, and no draw from the global seed
        network: nn.Module = getattr(diffusers, config["_class_name"]).from_config(config)
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{file} does not fit its config.json: {error}") from None
    if device.type == "cpu":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _renamed(key: str) -> str:
    """Attention weights by their names of today; files from before 2023 have older ones."""
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return ".".join(names.get(part, part) for part in key.split("."))


def _text_encoder(
    folder: Path, file: Path, device: torch.device, dtype: torch.dtype
) -> Callable[[str], Tensor]:
    """A text to CLIP's last hidden states, (1, tokens, width), padded as in training."""
    clip = import_transformers()
    config = clip.CLIPTextConfig.from_dict(read_json(folder / "text_encoder/config.json"))
    bars = clip.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()  # it would stay in a notebook's outputs
    try:
        encoder, report = clip.CLIPTextModel.from_pretrained(
            None, config=config, state_dict=data.read_tensors(file), output_loading_info=True
        )
    except RuntimeError as error:
        raise ValueError(f"{file} does not fit its config.json: {error}") from None
    finally:
        if shown:
            bars.enable_progress_bar()
    if report["missing_keys"] or report["mismatched_keys"]:
        raise ValueError(f"{file} does not fit its config.json: {report}")
    tokenizer = clip.CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    return _embedding(tokenizer, encoder.to(device, dtype).eval().requires_grad_(False))


def _embedding(tokenizer: Any, encoder: Any) -> Callable[[str], Tensor]:
    most = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)

    def embed(prompt: str) -> Tensor:
        ids = tokenizer(prompt, padding="max_length", max_length=most, return_tensors="pt")
        if ids.input_ids.shape[1] > most:
            raise ValueError(
                f"a prompt has at most {most - 2} tokens, got {ids.input_ids.shape[1] - 2}: "
                f"{prompt[:60]!r}"
            )
        return encoder(ids.input_ids.to(encoder.device)).last_hidden_state

    return embed


def _schedule(config: dict[str, Any]) -> tuple[Tensor, str]:
    from diffusers import DDPMScheduler

    if "beta_schedule" not in config and not config.get("trained_betas"):
        raise ValueError(
            f"expected a scheduler with betas (DDPM, DDIM, ...), got {config.get('_class_name')}"
        )
    abar = DDPMScheduler.from_config(config).alphas_cumprod
    return abar, config.get("prediction_type", "epsilon")


def _bounded(p: Model, config: dict[str, Any]) -> Any:
    """p, its x_0 kept to the range the scheduler clips or thresholds to, where p needs that."""
    if p.top == p.levels.top:  # nothing is divided by next to no signal
        return p
    if config.get("thresholding"):
        share, most = config["dynamic_thresholding_ratio"], config["sample_max_value"]
        p.bound = functools.partial(thresholded, share=share, most=most)
    elif config.get("clip_sample", config.get("_class_name") in CLIPPING):
        most = config.get("clip_sample_range", 1.0)
        p.bound = functools.partial(torch.clamp, min=-most, max=most)
    return p


def thresholded(x0: Tensor, share: float, most: float) -> Tensor:
    """x_0 (B, *shape) within [-1, 1]: divided by the share's quantile q of its |x_0|, clipped.

    q is at least 1 and at most `most`. Source: dynamic thresholding, 2205.11487.
    """
    q = x0.detach().abs().flatten(1).float().quantile(share, 1).clamp(1, most)
    q = q.to(x0).view(-1, *[1] * (x0.ndim - 1))
    return (x0 / q).clamp(-1, 1)

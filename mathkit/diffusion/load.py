"""Load a diffusion model: a built-in one, a local diffusers folder, or a Hub repository.

No file of a repository is ever run: configurations are JSON, weights are tensors.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mathkit import data
from mathkit.arguments import integer, number, told
from mathkit.diffusion import galaxies
from mathkit.diffusion.hub import (
    BUILT_IN,
    KINDS,
    ROOTS,
    check_plain,
    import_transformers,
    model_files,
    parts_of,
    unknown_parts,
)
from mathkit.diffusion.levels import preserving
from mathkit.diffusion.model import Model
from mathkit.diffusion.networks import (
    Bind,
    UNetModel,
    check_settings,
    check_sizes,
    network_shape,
    unwrapped,
)
from mathkit.diffusion.text import LatentModel, TextModel

F32, HALF = torch.float32, (torch.float16, torch.bfloat16)
MOST_TIMES = 100_000
DISTILLED = {"LCMScheduler", "TCDScheduler"}
CLIPPING = {"DDPMScheduler", "DDIMScheduler"}  # unless they say otherwise


def load_model(
    name: str | Path | Any,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    *,
    scheduler: Any = None,
    size: int | Sequence[int] | None = None,
) -> UNetModel:
    """A diffusion model: a built-in one, a local diffusers folder, a Hub repository, or one in
    memory.

    Pixel models (UNet2DModel, as google/ddpm-celebahq-256; with classes too), latent text models
    (Stable Diffusion 1.x, 2.x and XL; they need the package transformers) and DiT: `p.prompted`
    binds a text or a class. Reads the folder of `save_pretrained`, sharded or not, and the older
    layout with everything at the root; built-in files are hash-checked, pickles read weights-only,
    safety checkers left out. What is in memory keeps its device and dtype and is not changed: the
    model shares its weights. Of any other network `mk.denoiser` makes a model.

    Args:
        name: "alice", "galaxies" or "galaxies-32" (of another package: `pip install --no-deps
            galaxygrad==0.1.9`), a folder, a Hub id, a diffusers pipeline, or a network.
        device: "auto" is CUDA where there is one, else the CPU; for a built-in model always the
            CPU, where the book's pictures and tables are made; "mps" only when asked (it lacks the
            float64 of some analyses).
        dtype: of the U-Net, default float32; with a half one the repository's fp16 files are taken
            where there are some, while VAE and text encoder work in float32.
        revision: of a Hub repository, default a known commit or the newest, which is then printed.
        scheduler: of a network in memory, e.g. the DDPMScheduler it was trained with; or in the
            place of a local folder's own, as for the unet_ema of a training's checkpoint.
        size: of its pictures, one side or (height, width), default that of the training. A U-Net
            takes others, and draws best near its own.

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
        return _in_memory(name, scheduler, (device, dtype, revision) == ("auto", None, None), size)
    if name in galaxies.FILES and not Path(name).is_dir():
        if (revision, scheduler, size) != (None, None, None):
            raise ValueError(f"{name!r} has its own weights, noise levels and size: give none")
        place = _device("cpu" if device == "auto" else device)
        return galaxies.load_galaxies(str(name), place, dtype or F32)
    config = None if scheduler is None else _config_of(scheduler)
    files = model_files(name, revision, dtype in HALF, config)
    place = _device("cpu" if device == "auto" and files.source.startswith(BUILT_IN) else device)
    dtype = dtype or F32
    unet, fine = _network(files.unet, files.weights, place, dtype), torch.promote_types(dtype, F32)
    parts: dict[str, Any] = {}
    for part, file in files.parts.items():
        if part == "vae":
            vae = data.read_json(files.folder / "vae/config.json")
            parts[part] = _network(vae, file, place, fine)
        else:
            parts[part], words = _text_encoder(files.folder, part, file, place, fine)
            parts[part.replace("text_encoder", "tokenizer")] = words
    unet = _sized(unet, size, parts.get("vae"))
    return _assembled(unet, parts, files.scheduler, files.index, files.revision, files.source)


def _config_of(scheduler: Any) -> dict[str, Any]:
    """The configuration of a scheduler, or of the folder that holds one."""
    if isinstance(scheduler, str | Path):
        path = Path(scheduler)
        return data.read_json(path / "scheduler_config.json" if path.is_dir() else path)
    if not hasattr(scheduler, "config"):
        raise ValueError(
            "a network alone has no noise levels: give scheduler=, the one it was trained with, "
            f"e.g. diffusers.DDPMScheduler(), got {type(scheduler).__name__}"
        )
    return dict(scheduler.config)


def _assembled(
    unet: Any,
    parts: dict[str, Any],
    scheduler: dict[str, Any],
    index: dict[str, Any],
    revision: str | None = None,
    source: str = "in memory",
) -> UNetModel:
    """The model of a denoiser and of what it needs beside itself."""
    (abar, prediction), config = _schedule(scheduler), unwrapped(unet).config
    if "text_encoder" in parts:
        embed = _text_embedding(unet, parts)
        p = TextModel(unet, abar, parts["vae"], embed, prediction, revision, source)
        p.zeros = bool(index.get("force_zeros_for_empty_prompt", "text_encoder_2" in parts))
        return _bounded(p, scheduler)
    if "vae" in parts:
        count = config.num_embeds_ada_norm  # the class after the last is the null one
        embed = _class_embedding(count, count, _class_names(index))
        latent = LatentModel(unet, abar, parts["vae"], embed, prediction, revision, source)
        return _bounded(latent.prompted(""), scheduler)
    count = getattr(config, "num_class_embeds", None)
    classes = None if count is None else _class_embedding(count)
    return _bounded(UNetModel(unet, abar, prediction, revision, source, classes), scheduler)


def _in_memory(thing: Any, scheduler: Any, as_it_is: bool, size: Any) -> UNetModel:
    """A model of a diffusers pipeline or network."""
    parts: dict[str, Any] = dict(getattr(thing, "components", {"unet": thing}))
    unet = next((parts[root] for root in ROOTS if isinstance(parts.get(root), nn.Module)), None)
    kind = "" if unet is None else type(unwrapped(unet)).__name__
    if unet is None or kind not in KINDS:
        raise ValueError(
            f"expected a name, a folder, or a diffusers pipeline or network of {' or '.join(KINDS)}"
            f", got {type(thing).__name__}: mk.denoiser makes a model of any other network"
        )
    if not as_it_is:
        raise ValueError(
            "a model in memory keeps its device and dtype, and has no revision: move it first, "
            "network.to(device, dtype)"
        )
    config = _config_of(parts.get("scheduler") if scheduler is None else scheduler)
    network_shape(unwrapped(unet).config)
    needed = parts_of(kind, unwrapped(unet).config)
    there = {name for name, part in parts.items() if isinstance(part, nn.Module)}
    if unknown_parts(there, needed) or needed.keys() - there:
        raise ValueError(
            f"expected a {kind} {'with ' + ' and '.join(needed) if needed else 'alone'}, got "
            f"{', '.join(sorted(there))} of {type(thing).__name__}"
        )
    if thing is not unet:
        check_plain("what was given", type(thing).__name__)
    unet = _sized(unet, size, parts["vae"] if "vae" in needed else None)
    if not needed:
        return _assembled(unet, {}, config, {})
    index = dict(thing.config) | {"labels": getattr(thing, "labels", {})}
    return _assembled(unet, parts, config, index)


def _sized(unet: Any, size: int | Sequence[int] | None, vae: Any) -> Any:
    """The network for pictures of this size; its weights are shared, and it stays as it is."""
    if size is None:
        return unet
    sides = [size, size] if not isinstance(size, Sequence) else list(size)
    scale = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
    if (
        isinstance(size, str)
        or len(sides) != 2
        or any(integer(s, "size", 1) % scale for s in sides)
    ):
        raise ValueError(
            f"size is a side of the pictures or (height, width), in multiples of {scale}, got "
            f"{size!r}"
        )
    twin = copy.copy(unwrapped(unet))
    if type(twin).__name__ == KINDS[2]:
        raise ValueError("a DiT learned the places of one size alone: leave size out")
    twin.register_to_config(sample_size=[side // scale for side in sides])
    return twin


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
    from accelerate import init_empty_weights

    read = data.read_tensors(file)
    check_sizes(config, read, file.parent / "config.json")
    if whole := [key for key, value in read.items() if not value.is_floating_point()]:
        raise ValueError(
            f"{file} holds {read[whole[0]].dtype} in {whole[0]}: expected real numbers"
        )
    state = {_renamed(key): value.to(device, dtype) for key, value in read.items()}
    with _telling(f"{file} does not fit its config.json"):
        # No random weights first: quicker, and no draw from the global seed.
        with init_empty_weights(include_buffers=False):
            network: nn.Module = _made(diffusers, config)
        network.load_state_dict(state, assign=True)
    if device.type == "cpu":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Whatever fails inside, in other software, of the files it is given, is told as ours."""
    try:
        yield
    except Exception as error:  # of a wrong setting diffusers raises anything
        lines = " ".join(map(str.strip, str(error).splitlines()[:3]))[:300]
        raise ValueError(f"{what}: {lines or type(error).__name__}") from None


def _made(diffusers: Any, config: dict[str, Any]) -> nn.Module:
    kind = getattr(diffusers, config["_class_name"])
    if config["_class_name"] == KINDS[2]:  # older files hold the settings of every transformer
        known = inspect.signature(kind.__init__).parameters
        config = {key: value for key, value in config.items() if key in known}
    return kind.from_config(config)


def _renamed(key: str) -> str:
    """Attention weights by their names of today; files from before 2023 have older ones."""
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return ".".join(names.get(part, part) for part in key.split("."))


def _text_encoder(
    folder: Path, part: str, file: Path, device: torch.device, dtype: torch.dtype
) -> tuple[Any, Any]:
    """CLIP's text encoder of this part of a folder, and its tokenizer."""
    clip = import_transformers()
    settings, weights = data.read_json(folder / part / "config.json"), data.read_tensors(file)
    check_sizes(settings, weights, folder / part / "config.json")
    kind = clip.CLIPTextModelWithProjection if part.endswith("_2") else clip.CLIPTextModel
    bars = clip.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()  # it would stay in a notebook's outputs
    try:
        with _telling(f"{file} does not fit its config.json"):
            encoder, report = kind.from_pretrained(
                None,
                config=clip.CLIPTextConfig.from_dict(settings),
                state_dict=weights,
                output_loading_info=True,
            )
    finally:
        if shown:
            bars.enable_progress_bar()
    more = [k for k in report["unexpected_keys"] if ".layers." in k and "vision" not in k]
    if wrong := [*report["missing_keys"], *report["mismatched_keys"], *more]:
        raise ValueError(
            f"{file} does not fit its config.json: {len(wrong)} tensors are missing, too many or "
            f"of another shape, as {wrong[0]}"
        )
    words = folder / part.replace("text_encoder", "tokenizer")
    encoder = encoder.to(device, dtype).eval().requires_grad_(False)
    with _telling(f"{words} does not go with {file}: fetch the folder again"), torch.no_grad():
        tokenizer = clip.CLIPTokenizer.from_pretrained(words, local_files_only=True)
        _reading(tokenizer, encoder)("a")
    return encoder, tokenizer


def _text_embedding(unet: Any, parts: dict[str, Any]) -> Bind:
    """A text to CLIP's last hidden states (1, tokens, width), padded as in training; where two
    encoders read it, to what SDXL is given."""
    read = _reading(parts["tokenizer"], parts["text_encoder"])
    if "text_encoder_2" not in parts:
        return lambda prompt: read(prompt).last_hidden_state
    again = _reading(parts["tokenizer_2"], parts["text_encoder_2"])
    scale = 2 ** (len(parts["vae"].config.block_out_channels) - 1)
    size = [scale * side for side in network_shape(unwrapped(unet).config)[1:]]
    sizes = torch.tensor([[*size, 0, 0, *size]], dtype=F32)  # of the original, its cut, the target

    def embed(prompt: str) -> dict[str, Any]:
        one, two = read(prompt), again(prompt)
        texts = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1)
        added = {"text_embeds": two.text_embeds, "time_ids": sizes}
        return {"encoder_hidden_states": texts, "added_cond_kwargs": added}

    return embed


def _reading(tokenizer: Any, encoder: Any) -> Callable[[str], Any]:
    """A text to all that an encoder answers."""
    most = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)

    def read(prompt: str) -> Any:
        ids = tokenizer(prompt, padding="max_length", max_length=most, return_tensors="pt")
        if ids.input_ids.shape[1] > most:
            raise ValueError(
                f"a prompt has at most {most - 2} tokens, got {ids.input_ids.shape[1] - 2}: "
                f"{prompt[:60]!r}"
            )
        return encoder(ids.input_ids.to(encoder.device), output_hidden_states=True)

    return read


def _class_names(index: dict[str, Any]) -> dict[str, int]:
    """Each name of a class that a pipeline knows, to its number."""
    table, labels = index.get("id2label") or {}, index.get("labels") or {}
    try:
        names = {name.strip(): int(k) for k, line in table.items() for name in line.split(",")}
        return names | {name: int(k) for name, k in labels.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(
            'model_index.json: id2label is a table of classes, as {"1": "goldfish"}, got '
            f"{told(table)}, labels the reverse, got {told(labels)}"
        ) from None


def _class_embedding(
    count: int, null: int | None = None, names: dict[str, int] | None = None
) -> Bind:
    """A class, by its number or one of its names, to what the network is given."""

    def embed(prompt: Any) -> dict[str, Any]:
        if prompt == "" and null is None:
            raise ValueError("there is no null class: give negative= a class, or no guidance")
        k = null if prompt == "" else (names or {}).get(prompt, prompt)
        k = int(k) if isinstance(k, str) and k.isdecimal() else k
        most = count - 1 if prompt != "" else count
        return {"class_labels": torch.tensor([integer(k, "a class", 0, most)])}

    return embed


def _schedule(config: dict[str, Any]) -> tuple[Tensor, str]:
    from diffusers import DDPMScheduler

    if "beta_schedule" not in config and not config.get("trained_betas"):
        raise ValueError(
            f"expected a scheduler with betas (DDPM, DDIM, ...), got {config.get('_class_name')}"
        )
    if str(config.get("_class_name")) in DISTILLED:
        raise ValueError(
            f"a {config['_class_name']} goes with a network that was distilled to a few steps and "
            "is no denoiser any more: give scheduler=, the one of its training, if it is one"
        )
    check_settings(config, DDPMScheduler.__name__, "scheduler_config.json")
    with _telling("scheduler_config.json gives no noise levels"):
        integer(config.get("num_train_timesteps", 1000), "num_train_timesteps", 1, MOST_TIMES)
        abar = DDPMScheduler.from_config(config).alphas_cumprod
        preserving(abar)
    return abar, config.get("prediction_type", "epsilon")


def _bounded(p: Model, config: dict[str, Any]) -> Any:
    """p, its x_0 kept to the range the scheduler clips or thresholds to, where p needs that."""
    if p.top == p.levels.top:  # nothing is divided by next to no signal
        return p
    if config.get("thresholding"):
        ratio = config.get("dynamic_thresholding_ratio", 0.995)
        share = number(ratio, "dynamic_thresholding_ratio", 0, 1)
        most = number(config.get("sample_max_value", 1.0), "sample_max_value", 1)
        p.bound = functools.partial(thresholded, share=share, most=most)
    elif config.get("clip_sample", config.get("_class_name") in CLIPPING):
        most = number(config.get("clip_sample_range", 1.0), "clip_sample_range", 0)
        p.bound = functools.partial(torch.clamp, min=-most, max=most)
    return p


def thresholded(x0: Tensor, share: float, most: float) -> Tensor:
    """x_0 (B, *shape) within [-1, 1]: divided by the share's quantile q of its |x_0|, clipped.

    q is at least 1 and at most `most`. Source: dynamic thresholding, 2205.11487.
    """
    q = x0.detach().abs().flatten(1).float().quantile(share, 1).clamp(1, most)
    q = q.to(x0).view(-1, *[1] * (x0.ndim - 1))
    return (x0 / q).clamp(-1, 1)

"""A model's files: from a local diffusers folder, or from the Hub."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

from mathkit import data
from mathkit.diffusion.networks import check_settings, network_shape

STEM = "diffusion_pytorch_model"
KINDS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")
ROOTS = ("unet", "transformer")  # where a pipeline keeps its denoiser
PARTS = {"vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}  # of a text model
SECOND = {"text_encoder_2": "CLIPTextModelWithProjection"}  # of one that reads it twice
LEFT_OUT = {"safety_checker", "image_encoder", "feature_extractor"}  # they have no part in x_t
# Pipelines whose network is a denoiser of x_t, given a text, a class or nothing. Others mean
# something else by a network of the same shape, and no file says so but their name.
PLAIN = {f"{name}Pipeline" for name in ("DDPM", "DDIM", "PNDM", "RePaint", "DiT")}
PLAIN |= {
    f"StableDiffusion{size}{use}Pipeline"
    for size in ("", "XL")
    for use in ("", "Img2Img", "Inpaint", "PAG")
}
PLAIN |= {"StableDiffusionInpaintPipelineLegacy", "StableDiffusionPipelineSafe"}
READ = ("", *ROOTS, "scheduler", "tokenizer", "tokenizer_2", *PARTS, *SECOND)
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
    """A diffusers model's configurations, its weights files and where they come from.

    unet: of the denoiser. index: of the pipeline. parts: the weights of what else a model needs,
    as "vae" and "text_encoder"; empty for a pixel model.
    """

    folder: Path
    unet: dict[str, Any]
    scheduler: dict[str, Any]
    index: dict[str, Any]
    weights: Path
    parts: dict[str, Path]
    revision: str
    source: str


def model_files(
    name: str | Path,
    revision: str | None = None,
    half: bool = False,
    scheduler: dict[str, Any] | None = None,
) -> ModelFiles:
    """The files of a built-in model, a local diffusers folder or a Hub repository.

    revision (Hub only): a branch, tag or commit. half: fp16 files before float32 ones. scheduler:
    a configuration in the place of a local folder's own. The
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
    return _layout(Path(name), str(name), half=half, scheduler=scheduler)


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
                kept = _other_commit(name, revision, half)
            if kept is None:
                raise
    if kept.name != wanted:
        print(f"{name} at commit {kept.name}: ask for that revision to have the same again")
    return kept, kept.name


def _other_commit(name: str, revision: str | None, half: bool) -> Path | None:
    """The newest commit in the cache, where none was asked for and all files are there."""
    kept = _cached(name, None) if revision is None else None
    whole = kept is not None and _described(kept) and None not in _chosen(kept, half)
    return kept if whole else None


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

    for config in (*(f"{root}/config.json" for root in ROOTS), "config.json"):
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
    root, *_, parts = _configs(folder)
    files = [_choice(names.__contains__, part, half) for part in (root, *parts)]
    wanted = [name for f in files if f for name in _shards(folder, f, names.__contains__)]
    with _asking(name):
        snapshot_download(name, revision=folder.name, allow_patterns=wanted)
    return folder


def _choice(there: Callable[[str], bool], part: str, half: bool) -> str | None:
    """The best weights file of a network ("" for one at the root) of those that are there."""
    texts = part.startswith("text_encoder")
    stems = ("model", "pytorch_model") if texts else (STEM, STEM)
    for stem, suffix in zip(stems, (".safetensors", ".bin"), strict=True):
        for variant in (".fp16", "") if half else ("", ".fp16"):
            for file in (f"{stem}{variant}{suffix}", f"{stem}{suffix}.index{variant}.json"):
                name = (PurePosixPath(part) / file).as_posix()
                if there(name):
                    return name
    return None


def _shards(folder: Path, file: str, there: Callable[[str], bool]) -> list[str]:
    """The names of the files that hold these weights. FileNotFoundError where one is not there."""
    names = [shard.relative_to(folder).as_posix() for shard in data.shards(folder / file)]
    if lost := [name for name in names if not there(name)]:
        shown = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        raise FileNotFoundError(
            f"{folder / file} names {len(names)} shards, of which {len(lost)} "
            f"{'is' if len(lost) == 1 else 'are'} missing: {shown}. Fetch the folder again, whole"
        )
    return names


def _described(folder: Path) -> bool:
    """Whether a folder holds every configuration that its model needs."""
    try:
        _configs(folder)
    except FileNotFoundError:
        return False
    return True


def _chosen(folder: Path, half: bool) -> list[str | None]:
    """The best weights file of each network that a folder has a configuration of; None where it,
    or a shard of it, is not there."""
    root, *_, parts = _configs(folder)
    files = [_choice(lambda n: (folder / n).is_file(), part, half) for part in (root, *parts)]
    return [f if f and all(s.is_file() for s in data.shards(folder / f)) else None for f in files]


def _layout(
    folder: Path,
    source: str,
    commit: str | None = None,
    half: bool = False,
    scheduler: dict[str, Any] | None = None,
) -> ModelFiles:
    """Read either layout: unet/ and scheduler/ below the folder, or everything at its root."""
    root, unet, scheduler, index, parts = _configs(folder, scheduler)
    files: dict[str, Path] = {}
    for part in (root, *parts):
        chosen = _choice(lambda n: (folder / n).is_file(), part, half)
        if chosen is None:
            stem = "model" if part.startswith("text_encoder") else STEM
            raise FileNotFoundError(f"{folder / part} holds no {stem}.safetensors (or .bin)")
        files[part] = folder / chosen
        for shard in _shards(folder, chosen, lambda n: (folder / n).is_file()):
            data.check_pointer(folder / shard)
    main, known = files.pop(root), PUBLISHED.get((source, commit or ""))
    digest = data.sha256(*data.shards(main)) if known or commit is None else None
    if known and ".bin" in main.suffixes and digest != known:
        raise ValueError(f"{main} is not the published file of SHA-256 {known}: got {digest}")
    pickled = [p for p in (main, *files.values()) if ".bin" in p.suffixes]
    note = ", a pickle read weights-only" if pickled else ""
    note += ", of its fp16 files" if ".fp16." in main.name else ""
    note += ", of the published SHA-256" if known and digest == known else ""
    revision = commit or f"sha256:{digest}"
    return ModelFiles(folder, unet, scheduler, index, main, files, revision, source + note)


def parts_of(kind: str, config: Any) -> dict[str, str]:
    """What a denoiser of this class and configuration needs beside itself: folder -> class."""
    if kind == "UNet2DModel":
        return {}
    if kind == "DiTTransformer2DModel":
        return {"vae": PARTS["vae"]}
    return PARTS | (SECOND if getattr(config, "addition_embed_type", None) else {})


def unknown_parts(names: Iterable[str], needed: Iterable[str]) -> list[str]:
    """The networks of a pipeline that a model of ours does not know what to do with."""
    return sorted(set(names) - set(needed) - set(ROOTS) - LEFT_OUT)


def _configs(
    folder: Path, scheduler: dict[str, Any] | None = None
) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """Where the denoiser lies, its, the scheduler's and the pipeline's configurations, and what
    else is needed."""
    root = next((name for name in ROOTS if (folder / name / "config.json").is_file()), "")
    unet = _config(folder, [folder / root / "config.json"])
    kind = unet["_class_name"] = _class(unet)
    if kind not in KINDS:
        raise ValueError(
            f"{folder} is a {kind}: mathkit reads {', '.join(KINDS)}; mk.denoiser makes a model of "
            "any other network"
        )
    if scheduler is None:
        places = [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
        scheduler = _config(folder, places, ": give scheduler=, the one it was trained with")
    check_settings(unet, kind, folder / root / "config.json")
    settings = SimpleNamespace(**unet)
    network_shape(settings)
    file = folder / "model_index.json"
    index, needed = data.read_json(file) if file.is_file() else {}, parts_of(kind, settings)
    if kind == "UNet2DModel" and any((folder / p).is_dir() or p in index for p in LATENT):
        raise ValueError(f"{folder} is a latent model without text, which mathkit does not read")
    _check_pipeline(folder, index, needed)
    alone = not any((folder / part).is_dir() for part in needed)
    for part, wanted in needed.items():
        config = _config(folder, [folder / part / "config.json"], ALONE if alone else "")
        found = config.get("_class_name") or config.get("architectures") or "?"
        found = found[0] if isinstance(found, list) else found
        if found != wanted:
            raise ValueError(f"{folder / part} is a {found}: mathkit reads {wanted}")
        if part == "vae":
            check_settings(config, wanted, folder / part / "config.json")
    for part in needed:
        words = part.replace("text_encoder", "tokenizer")
        if words != part:
            _check_words(folder, words)
    if "text_encoder" in needed:
        import_transformers()  # if it is missing, say so before weights are fetched
    return root, unet, scheduler, index, tuple(needed)


LATENT = ("vae", "vqvae")
ALONE = (
    ": a latent model's network alone. Make a pipeline of it and of the model it was trained from, "
    "as StableDiffusionPipeline.from_pretrained(MODEL, unet=network), and give mk.load_model that"
)


def _class(config: dict[str, Any]) -> str:
    """The class of a network, by its name of today."""
    old = config.get("_class_name") == "Transformer2DModel"
    dit = old and config.get("norm_type") == "ada_norm_zero"
    return KINDS[2] if dit else str(config.get("_class_name", "network without _class_name"))


def _check_pipeline(folder: Path, index: dict[str, Any], needed: dict[str, str]) -> None:
    """Raises where a pipeline has networks we do not know, or means something else by its own."""
    parts = {
        k for k, v in index.items() if isinstance(v, list) and any(v[:1]) and not k.startswith("_")
    }
    plain = {"scheduler", "tokenizer", "tokenizer_2"}
    if more := unknown_parts(parts - plain, needed):
        raise ValueError(
            f"{folder} is a {index.get('_class_name')}, a pipeline with {', '.join(more)}, which "
            "mathkit does not read"
        )
    if index.get("_class_name") is not None:
        check_plain(folder, index["_class_name"])


def check_plain(where: Any, name: Any) -> None:
    """Raises ValueError for a pipeline (its class's name) that is none of `PLAIN`."""
    if str(name) not in PLAIN:  # of a repository's own class it is a list
        raise ValueError(
            f"{where} is a {name}, and what such a pipeline's network means by its input is not "
            "known here. Where it is plain Stable Diffusion's, say so: "
            "mk.load_model(StableDiffusionPipeline.from_pretrained(FOLDER)), or (**p.components) "
            "of a pipeline p; mk.denoiser makes a model of any other network"
        )


def _check_words(folder: Path, part: str) -> None:
    """Raises where a tokenizer lacks its vocabulary: transformers would make an empty one of it,
    to which all texts are one."""
    place = folder / part
    if not place.is_dir():
        raise FileNotFoundError(f"{folder} holds no {part}/, which a text model needs")
    files = [place / name for name in ("tokenizer.json", "vocab.json", "merges.txt")]
    there = [file.is_file() for file in files]
    if not (there[0] or all(there[1:])):
        raise FileNotFoundError(
            f"{place} holds no tokenizer.json, nor vocab.json with merges.txt: without its words a "
            "text model reads all texts alike; fetch the folder again"
        )
    for file, found in zip(files, there, strict=True):
        if found:
            data.check_pointer(file)


def _config(folder: Path, places: list[Path], cure: str = "") -> dict[str, Any]:
    for path in places:
        if path.is_file():
            return data.read_json(path)
    wanted = " or ".join(p.relative_to(folder).as_posix() for p in places)
    held = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(
        f"{folder} is no diffusers model: no {wanted} in it (it holds {held}){cure}"
    )

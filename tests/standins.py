"""Stand-ins for published models: their own configurations and layouts, with random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

COMMON = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu",
    "attention_head_dim": None, "center_input_sample": False, "in_channels": 3,
    "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-06, "norm_num_groups": 32,
    "out_channels": 3, "time_embedding_type": "positional", "flip_sin_to_cos": False,
    "freq_shift": 1,
}  # fmt: skip
# google/ddpm-celebahq-256, its EMA twin, ddpm-church-256, ddpm-bedroom-256, ...
CELEBAHQ = COMMON | {
    "sample_size": 256,
    "downsample_padding": 0,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
}
# google/ddpm-cifar10-32 and its EMA twin
CIFAR = COMMON | {
    "sample_size": 32,
    "downsample_padding": 0,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
# The same family in a few thousand parameters: images (3, 16, 16), h (8, 2, 2).
SMALL = COMMON | {
    "sample_size": 16,
    "downsample_padding": 0,
    "norm_num_groups": 4,
    "block_out_channels": [4, 4, 8, 8],
    "down_block_types": ["DownBlock2D"] * 2 + ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 2,
}
SCHEDULE = {
    "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02,
    "beta_schedule": "linear", "beta_start": 0.0001, "clip_sample": True,
    "num_train_timesteps": 1000, "trained_betas": None, "variance_type": "fixed_small",
}  # fmt: skip
# Attention weights as they were called when those files were written.
OLD = {"to_q": "query", "to_k": "key", "to_v": "value"}
WORDS = ("a", "smiling", "man", "frowning")


def ddpm(place: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """A google/ddpm-* repository: everything at the root, the weights a .bin with old names."""
    from diffusers import UNet2DModel

    place.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = UNet2DModel.from_config(config).state_dict()
    torch.save({old_name(k): v for k, v in state.items()}, place / "diffusion_pytorch_model.bin")
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": "0.1.1"}
    index |= {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    for name, content in (
        ("model_index", index),
        ("config", config),
        ("scheduler_config", SCHEDULE),
    ):
        (place / f"{name}.json").write_text(json.dumps(content, indent=2))
    return place


def old_name(key: str) -> str:
    return ".".join(OLD.get(part, part) for part in key.split(".")).replace("to_out.0", "proj_attn")


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def text_networks(size: int = 8) -> tuple[Any, Any]:
    """A UNet2DConditionModel on latents (4, size, size), an AutoencoderKL to (3, 2 size, 2 size).

    h is (16, size / 2, size / 2); the scaling factor is nobody's default.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet = UNet2DConditionModel(
            sample_size=size, layers_per_block=1, block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=12, attention_head_dim=2, norm_num_groups=4,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(4, 8), norm_num_groups=2, sample_size=2 * size, scaling_factor=0.4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
    return unet.eval(), vae.eval()


def letters(prompt: str) -> Tensor:
    """A text encoder for tests of the model alone: 5 tokens of width 12, drawn from the text."""
    seed = sum(ord(letter) * (i + 1) for i, letter in enumerate(prompt))
    return torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(seed))


def scheduler(prediction: str) -> Any:
    """Stable Diffusion's betas, in a scheduler whose steps end at the clean image."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type=prediction, steps_offset=1,
    )  # fmt: skip


def vocabulary(place: Path) -> Path:
    """A CLIP tokenizer's files: the letters, and WORDS merged from them."""
    marks = list("abcdefghijklmnopqrstuvwxyz")
    tokens, merges = marks + [letter + "</w>" for letter in marks], []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append(" ".join(parts[:2]))
            parts[:2] = ["".join(parts[:2])]
            tokens.append(parts[0])
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    place.mkdir(parents=True)
    (place / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (place / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n")
    ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    ends |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 16, "do_lower_case": True}
    (place / "tokenizer_config.json").write_text(json.dumps(config | ends))
    (place / "special_tokens_map.json").write_text(json.dumps(ends))
    return place


def stable_diffusion(place: Path, prediction: str = "epsilon", **saved: Any) -> Any:
    """A Stable Diffusion repository of a few thousand parameters, and the pipeline that wrote it.

    prediction: "epsilon" as 1.x, "v_prediction" as 2.x. saved: more for `save_pretrained`.
    """
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(vocabulary(place / "tokenizer"))
    (unet, vae), size = text_networks(), len(tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=size, hidden_size=12, intermediate_size=24, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=16, bos_token_id=size - 2,
                eos_token_id=size - 1, pad_token_id=size - 1,
            )
        ).eval()  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet,
        scheduler=scheduler(prediction), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(place, **saved)
    return pipeline

"""What people load: each network by its real configuration scaled down, with random weights,
against diffusers' own pipeline on the same noise; other kinds, refused by name."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import standins
import torch
from conftest import UNTRAINED
from safetensors.torch import load_file, save_file
from torch import Tensor

import mathkit as mk
from mathkit import data
from mathkit.diffusion.gaussian import GaussianModel
from mathkit.diffusion.load import _class_names
from mathkit.diffusion.model import linear_schedule
from mathkit.diffusion.networks import network_shape
from mathkit.diffusion.sampling import start
from mathkit.tools import atlas

pytestmark = [UNTRAINED, pytest.mark.long]
STEPS, SAFE = 5, "diffusion_pytorch_model.safetensors"


def same(ours: Tensor, theirs: Tensor, share: float = 1e-4) -> None:
    """Equal to a share of the largest."""
    assert float((ours - theirs).abs().max()) < share * float(theirs.abs().max())


def grid(scheduler: Any, steps: int = STEPS) -> list[int]:
    scheduler.set_timesteps(steps)
    return [int(t) for t in scheduler.timesteps]


def ddim(**how: Any) -> Any:
    """Its last step ends at the clean image, as ours does."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(**({"clip_sample": False, "set_alpha_to_one": True} | how))


def differentiable(p: Any, x: Tensor, t: int) -> None:
    """The posterior mean's Jacobian against a finite difference, and its transpose; a singular
    value against the length of a push."""
    f = mk.posterior_mean(p, t)
    A, v = mk.jacobian(f, x), torch.randn_like(x)
    e = 1e-2
    fd = (f(x + e * v) - f(x - e * v)) / (2 * e)
    assert float((A.push(v) - fd).norm() / fd.norm()) < 0.02
    mk.check_adjoint(A)
    r = mk.svd(A, 1)
    assert abs(float(A.push(r.V[:1]).norm() / r.S[0]) - 1) < 1e-2


def inverts(p: Any, x0: Tensor, t: int = 500) -> None:
    back = mk.denoise(p, mk.invert(p, x0, t, 8, refine=4), t, 8)
    assert float((back - x0).norm() / x0.norm()) < 0.05


# Pixel models ------------------------------------------------------------------------------------


def pixel(place: Path, scheduler: Any, **changes: Any) -> Any:
    """A saved google/ddpm-* network with this scheduler, and the pipeline that wrote it."""
    from diffusers import DDIMPipeline, UNet2DModel

    torch.manual_seed(0)
    pipeline = DDIMPipeline(UNet2DModel.from_config(standins.SMALL | changes).eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler  # the pipeline makes a DDIMScheduler of its own of it
    pipeline.save_pretrained(place)
    return pipeline


BETAS: dict[str, dict[str, Any]] = {
    "linear": {},
    "scaled linear": {"beta_schedule": "scaled_linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "zero SNR": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "few": {"num_train_timesteps": 100},
}


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_pixel_model_samples_as_diffusers_does(
    betas: str, prediction: str, tmp_path: Path
) -> None:
    scheduler = ddim(prediction_type=prediction, **BETAS[betas])
    if (betas, prediction) == ("zero SNR", "epsilon"):
        with pytest.raises(ValueError, match="epsilon says nothing of x_0"):
            mk.load_model(pixel(tmp_path / "p", scheduler))
        return
    pipeline = pixel(tmp_path / "p", scheduler)
    p = mk.load_model(tmp_path / "p")
    times = grid(scheduler)
    x = first = start(p, 0, [0, 1])
    with torch.no_grad():
        for t in times:
            x = scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    same(mk.denoise(p, first, times[0], times=times), x)
    same(mk.load_model(pipeline).noise(first, times[1]), p.noise(first, times[1]))
    if prediction == "v_prediction":
        inverts(p, 0.3 * first, 50)


def test_a_table_of_one_time_is_the_least(tmp_path: Path) -> None:
    pixel(tmp_path / "p", ddim(num_train_timesteps=1))
    p = mk.load_model(tmp_path / "p")
    assert mk.timesteps(p, 0, 5) == [0] and p.levels.top == 0
    standins.edit(tmp_path / "p/scheduler/scheduler_config.json", num_train_timesteps=0)
    with pytest.raises(ValueError, match="num_train_timesteps is an integer in 1"):
        mk.load_model(tmp_path / "p")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_learned_variances_are_left_aside(prediction: str, tmp_path: Path) -> None:
    """FFHQ, AFHQ and flowers of P2: DDPMPipeline's own noise, its mean by the first channels."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        variance_type="learned_range", prediction_type=prediction, clip_sample=False
    )
    pixel(tmp_path / "p", scheduler, out_channels=6)
    p = mk.load_model(tmp_path / "p")
    x, t, unet = torch.randn(2, 3, 16, 16), 600, p.unet
    out = unet(x, t).sample
    theirs = scheduler.step(out, t, x).pred_original_sample
    same(p.clean(x, t), theirs)
    assert out.shape[1] == 6 and p.shape == (3, 16, 16)
    assert mk.encoder(p, t)(x).shape == (2, 8, 2, 2)
    differentiable(p, x[:1], t)


def test_classes_are_bound_as_prompts_are(tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel.from_config(standins.SMALL | {"num_class_embeds": 5}).eval()
    scheduler = ddim()
    unet.save_pretrained(tmp_path / "p/unet")
    scheduler.save_pretrained(tmp_path / "p/scheduler")
    p = mk.load_model(tmp_path / "p")
    x = first = start(p, 0, [0, 1])
    times = grid(scheduler)
    with torch.no_grad():
        for t in times:
            yes, no = (unet(x, t, class_labels=torch.tensor([k, k])).sample for k in (3, 1))
            x = scheduler.step(no + 2.5 * (yes - no), t, x).prev_sample
    q = p.prompted(3, guidance=2.5, negative=1)
    same(mk.denoise(q, first, times[0], times=times), x)
    assert "prompt 3, guidance 2.5" in repr(q)
    differentiable(p.prompted(3), first[:1], 600)
    for act, message in (
        (lambda: p.noise(first, 5), r"given a class: bind one, p.prompted\(0\)"),
        (lambda: p.prompted(5), r"a class is an integer in 0 \.\.\. 4, got 5"),
        (lambda: p.prompted("cat"), "a class is an integer"),
        (lambda: p.prompted(3, guidance=2.0), "no null class"),
    ):
        with pytest.raises(ValueError, match=message):
            act()


# DiT ---------------------------------------------------------------------------------------------


def dit(place: Path) -> Any:
    """facebook/DiT-XL-2-256 in two blocks, with its learned variances and its label table."""
    from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, num_embeds_ada_norm=1000, attention_bias=True,
    )  # fmt: skip
    for weight in transformer.parameters():  # its last layer begins at zero
        torch.nn.init.normal_(weight, std=0.1)
    vae = AutoencoderKL(
        block_out_channels=(4, 8), norm_num_groups=2, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    labels = {207: "golden retriever", 1: "goldfish, Carassius auratus"}
    pipeline = DiTPipeline(transformer.eval(), vae.eval(), ddim(), id2label=labels)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(place)
    standins.edit(place / "model_index.json", id2label=labels)
    return pipeline


@pytest.mark.parametrize(
    "index", [{"labels": {"cat": None}}, {"labels": {"cat": "x"}}, {"id2label": [1]}]
)
def test_classes_that_are_no_table_are_told(index: dict[str, Any]) -> None:
    given = {"id2label": {"1": "goldfish, carp"}, "labels": {"cat": "2"}}
    assert _class_names(given) == {"goldfish": 1, "carp": 1, "cat": 2}
    with pytest.raises(ValueError, match="id2label is a table of classes"):
        _class_names(given | index)


def test_dit_samples_as_its_pipeline_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = dit(tmp_path / "dit")
    p = mk.load_model(tmp_path / "dit")
    first = start(p, 0, [0, 1])
    monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda **_: first)
    theirs = pipeline([207, 207], 4.0, num_inference_steps=STEPS, output_type="pt").images
    theirs = torch.as_tensor(theirs).permute(0, 3, 1, 2) if theirs.shape[-1] == 3 else theirs
    times = grid(pipeline.scheduler)
    for model in (p, mk.load_model(pipeline)):
        for name in (207, "golden retriever", "207"):
            q = model.prompted(name, guidance=4.0)
        x0 = mk.denoise(q, first, times[0], times=times)
        assert float(((q.decode(x0) / 2 + 0.5).clamp(0, 1) - theirs).abs().max()) < 1e-4
    assert p.prompt == "" and p.image_shape == (3, 16, 16)
    assert torch.equal(p.noise(first, 9), p.prompted(1, 0.0).noise(first, 9)), "the null class"
    differentiable(p.prompted(1), first[:1], 600)
    inverts(p.prompted(1), 0.3 * first)
    h = mk.encoder(p.prompted(1), 600)(first)
    assert h.ndim == 3 and len(h) == len(first), "tokens of the middle block"


def test_the_older_name_of_dit_is_the_same_network(tmp_path: Path) -> None:
    dit(tmp_path / "dit")
    new, x = mk.load_model(tmp_path / "dit"), torch.randn(1, 4, 8, 8)
    standins.edit(
        tmp_path / "dit/transformer/config.json", _class_name="Transformer2DModel",
        norm_type="ada_norm_zero", caption_channels=None, use_linear_projection=False,
    )  # fmt: skip
    assert torch.equal(mk.load_model(tmp_path / "dit").noise(x, 600), new.noise(x, 600))


# SDXL --------------------------------------------------------------------------------------------


def sdxl(place: Path) -> Any:
    """stabilityai/stable-diffusion-xl-base in a few thousand parameters."""
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    tokenizer = CLIPTokenizer.from_pretrained(standins.vocabulary(place / "tokenizer"))
    size = len(tokenizer)
    how = {
        "vocab_size": size, "intermediate_size": 24, "num_hidden_layers": 2, "projection_dim": 6,
        "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": size - 2,
        "eos_token_id": size - 1, "pad_token_id": size - 1,
    }  # fmt: skip
    torch.manual_seed(0)
    one = CLIPTextModel(CLIPTextConfig(hidden_size=8, **how)).eval()
    two = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=12, **how)).eval()
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=20,
        attention_head_dim=(1, 2), transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 6,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 8), norm_num_groups=2, sample_size=16, scaling_factor=0.13025,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        vae.eval(), one, two, tokenizer, tokenizer, unet.eval(),
        ddim(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        add_watermarker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(place)
    return pipeline


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    place = tmp_path_factory.mktemp("xl") / "sdxl"
    return place, sdxl(place)


@pytest.mark.parametrize(("guidance", "negative"), [(1.0, ""), (6.0, ""), (6.0, "a frowning man")])
def test_sdxl_samples_as_its_pipeline_does(xl: Any, guidance: float, negative: str) -> None:
    place, pipeline = xl
    p = mk.load_model(place)
    q, x = p.prompted("a smiling man", guidance, negative), torch.randn(1, 4, 8, 8)
    asked = {"guidance_scale": guidance, "num_inference_steps": STEPS, "latents": x}
    asked |= {"negative_prompt": negative or None, "output_type": "latent"}
    theirs = pipeline("a smiling man", **asked).images
    times = grid(pipeline.scheduler)
    same(mk.denoise(q, x, times[0], times=times), theirs)
    same(mk.load_model(pipeline).prompted("a smiling man", guidance, negative).noise(x, 600),
         q.noise(x, 600))  # fmt: skip
    assert p.zeros and p.prompt == "" and mk.encoder(q, 600)(x).shape == (1, 16, 4, 4)
    assert (p.noise(x, 600) - p.prompted("man").noise(x, 600)).abs().max() > 1e-3


def test_sdxl_is_differentiated_inverted_and_decoded(xl: Any) -> None:
    p, x = mk.load_model(xl[0]).prompted("a man"), torch.randn(1, 4, 8, 8)
    differentiable(p, x, 600)
    inverts(p, 0.5 * x)
    images = xl[1].vae.decode(x / 0.13025).sample.detach()
    same(p.decode(x), images)


# Other sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 32), 8, (40, 16)])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_another_size_is_the_pipeline_s_at_that_size(kind: str, size: Any, tmp_path: Path) -> None:
    """SDXL is also told it."""
    make = {"sd": standins.stable_diffusion, "sdxl": sdxl}
    pipeline = make[kind](tmp_path / kind)
    high, wide = size if isinstance(size, tuple) else (size, size)
    x = torch.randn(1, 4, high // 2, wide // 2)
    asked = {"height": high, "width": wide, "guidance_scale": 5.0, "latents": x}
    asked |= {"num_inference_steps": 10, "output_type": "latent"}
    theirs = pipeline("a smiling man", **asked).images
    images = pipeline("a smiling man", **asked | {"output_type": "pt"}).images
    for name in (tmp_path / kind, pipeline):
        p = mk.load_model(name, size=size).prompted("a smiling man", 5.0)
        assert p.shape == x.shape[1:] and p.image_shape == (3, high, wide)
        times = [int(t) for t in pipeline.scheduler.timesteps]
        x0 = mk.denoise(p, x, times[0], times=times)
        same(x0, theirs)
        assert float(((p.decode(x0) / 2 + 0.5).clamp(0, 1) - images).abs().max()) < 1e-4
    assert pipeline.unet.config.sample_size == 8, "what was given is as it was"
    assert mk.load_model(pipeline).shape == (4, 8, 8)
    differentiable(p, x, 600)


def test_a_pixel_model_of_another_size_is_its_network_on_it(folder: Path) -> None:
    p, x = mk.load_model(folder, size=(24, 32)), torch.randn(2, 3, 24, 32)
    assert p.shape == p.image_shape == (3, 24, 32)
    unet = mk.load_model(folder).unet
    assert torch.equal(p.noise(x, 600), unet(x, 600).sample)
    assert mk.encoder(p, 600)(x).shape == (2, 8, 3, 4)
    assert mk.sample(p, 1, steps=2).shape == (1, 3, 24, 32)


@pytest.mark.parametrize("size", [0, -8, 7.5, "16", (16,), (16, 16, 3), (16, "16"), True])
def test_what_is_no_size_is_told(size: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match="size is a"):
        mk.load_model(folder, size=size)


def test_sizes_that_do_not_fit_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sides 20 x 16, and it halves them 3 times"):
        mk.load_model(folder, size=(20, 16))
    standins.stable_diffusion(tmp_path / "sd")
    with pytest.raises(ValueError, match=r"in multiples of 2, got \(16, 13\)"):
        mk.load_model(tmp_path / "sd", size=(16, 13))
    dit(tmp_path / "dit")
    with pytest.raises(ValueError, match="a DiT learned the places of one size alone"):
        mk.load_model(tmp_path / "dit", size=32)
    p = mk.load_model(folder)
    with pytest.raises(ValueError, match=r"scale them, or mk.load_model\(..., size=\(24, 32\)"):
        mk.invert(p, torch.zeros(1, 3, 24, 32), 500)


# Files as people have them -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixel(tmp_path / "p", ddim())
    return tmp_path / "p"


def sharded(folder: Path, variant: str = "") -> None:
    """The U-Net's weights in three files and an index, as `save_pretrained` writes them."""
    from diffusers import UNet2DModel

    unet = UNet2DModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="20KB", variant=variant or None)
    assert len(list((folder / "unet").glob("*-of-*"))) > 2


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_shards_are_one_network(folder: Path, variant: str) -> None:
    whole, x = mk.load_model(folder), torch.randn(1, 3, 16, 16)
    sharded(folder, variant)
    p = mk.load_model(folder, dtype=torch.float16 if variant else None)
    same(p.noise(x, 600), whole.noise(x, 600), 0.02 if variant else 1e-6)
    assert p.revision and p.revision != whole.revision
    assert ("of its fp16 files" in repr(p)) == bool(variant)
    last = sorted((folder / "unet").glob("*-of-*"))[-1]
    state = {k: v + 1 for k, v in load_file(last).items()}
    save_file(state, last)
    assert mk.load_model(folder).revision != p.revision, "each shard counts"


def spoilt(shard: Path, how: str) -> str:
    """Spoil a shard; what is to be said of it."""
    if how == "missing":
        shard.unlink()
        return rf"shards, of which 1 is missing: unet/{shard.name}\. Fetch the folder again"
    content = shard.read_bytes()
    shard.write_bytes(POINTER if how == "pointer" else content[: len(content) // 2])
    said = "a pointer of git-lfs.*lfs pull" if how == "pointer" else "no whole safetensors file"
    return rf"{shard.name} is {said}"


@pytest.mark.parametrize("how", ["missing", "pointer", "cut"])
@pytest.mark.parametrize("which", [0, -1])
def test_a_spoilt_shard_is_named(
    how: str, which: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharded(folder)
    said = spoilt(sorted((folder / "unet").glob("*-of-*"))[which], how)
    if how != "cut":  # said before a byte of the others is read
        monkeypatch.setattr(data, "sha256", None)
        monkeypatch.setattr(data, "read_tensors", None)
    with pytest.raises(FileNotFoundError if how == "missing" else ValueError, match=said):
        mk.load_model(folder)


def test_all_missing_shards_are_counted(folder: Path) -> None:
    sharded(folder)
    shards = sorted((folder / "unet").glob("*-of-*"))
    assert len(shards) > 4
    for shard in shards[1:]:
        shard.unlink()
    first, count = shards[1].name, len(shards)
    said = rf"of which {count - 1} are missing: unet/{first}, .* and {count - 4} more\. Fetch"
    with pytest.raises(FileNotFoundError, match=said):
        mk.load_model(folder)


def test_an_index_names_files_of_its_own_folder_alone(folder: Path) -> None:
    sharded(folder)
    (index,) = (folder / "unet").glob("*.index.json")
    for content in ({"weight_map": {"a": "../../secret.bin"}}, {"weight_map": {}}, {"a": 1}):
        index.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="is no index of shards"):
            mk.load_model(folder)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"


@pytest.mark.parametrize(
    "name", ["unet/" + SAFE, "unet/config.json", "unet/diffusion_pytorch_model.bin"]
)
def test_a_pointer_of_git_lfs_is_named(folder: Path, name: str) -> None:
    if name.endswith(".bin"):
        (folder / "unet" / SAFE).unlink()
    (folder / name).write_bytes(POINTER)
    with pytest.raises(ValueError, match=f"{re.escape(name)} is a pointer of git-lfs.*lfs pull"):
        mk.load_model(folder)


def test_a_checkpoint_s_networks_are_loaded_with_a_scheduler_named(folder: Path) -> None:
    """As the training scripts leave it: checkpoint-N/unet and unet_ema, no scheduler."""
    whole, x = mk.load_model(folder), torch.randn(1, 3, 16, 16)
    point, scheduler = folder.parent / "checkpoint-500", folder / "scheduler"
    for name in ("unet", "unet_ema"):
        shutil.copytree(folder / "unet", point / name)
    save_file(
        {k: v * 0 for k, v in load_file(point / "unet" / SAFE).items()}, point / "unet" / SAFE
    )
    with pytest.raises(FileNotFoundError, match=r"no scheduler.*give scheduler=, the one it was"):
        mk.load_model(point)
    for how in (scheduler, str(scheduler / "scheduler_config.json"), ddim()):
        ema = mk.load_model(point / "unet_ema", scheduler=how)
        assert torch.equal(ema.noise(x, 600), whole.noise(x, 600))
    assert float(mk.load_model(point, scheduler=scheduler).noise(x, 600).abs().max()) == 0


def test_the_default_times_are_shares_of_the_way_up() -> None:
    for top, wanted in ((999, [900, 700, 500]), (99, [90, 70, 50])):
        p = GaussianModel(torch.zeros(2), torch.eye(2), linear_schedule(top + 1, 1e-4, 0.1))
        p.spacing = "t"
        assert p.top == top
        found = atlas.nearest(p, None, top + 1)
        assert found == wanted == atlas.nearest(p, wanted, top + 1)


def test_a_side_that_does_not_halve_is_told(folder: Path) -> None:
    standins.edit(folder / "unet/config.json", sample_size=30)
    with pytest.raises(
        ValueError, match="sides 30 x 30, and it halves them 3 times: .*multiples of 8"
    ):
        mk.load_model(folder)
    four = {"in_channels": 4, "out_channels": 4, "down_block_types": ["DownBlock2D"] * 3}
    for sides in ((8, 6), (6, 8)):
        with pytest.raises(ValueError, match=f"sides {sides[0]} x {sides[1]}, and it halves"):
            network_shape(SimpleNamespace(**four, sample_size=sides))
    assert network_shape(SimpleNamespace(**four, sample_size=(8, 4))) == (4, 8, 4)
    del four["down_block_types"]
    assert network_shape(SimpleNamespace(**four, sample_size=1)) == (4, 1, 1)


def test_a_latent_network_without_its_index_is_no_pixel_model(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    (folder / "vqvae").mkdir()
    with pytest.raises(ValueError, match="latent model without text"):
        mk.load_model(folder)


# Other kinds, refused by name --------------------------------------------------------------------

OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "LCM": ({"time_cond_proj_dim": 256}, "a latent consistency model .LCM"),
    "inpainting": ({"in_channels": 9}, "inpainting, given a mask"),
    "InstructPix2Pix": ({"in_channels": 8}, "InstructPix2Pix, given a picture"),
    "upscaler": ({"in_channels": 7, "num_class_embeds": 1000}, "an upscaler"),
    "depth": ({"in_channels": 5}, "depth2img"),
    "IP-Adapter": ({"encoder_hid_dim_type": "ip_image_proj"}, "encoder_hid_dim_type ip_image"),
    "unCLIP": ({"class_embed_type": "projection"}, "class_embed_type projection"),
    "noise level": ({"num_class_embeds": 10}, "num_class_embeds 10"),
    "Kandinsky": ({"addition_embed_type": "image"}, "addition_embed_type image"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_text_networks_of_another_kind_are_refused_by_name(case: str, tmp_path: Path) -> None:
    changes, message = OTHERS[case]
    standins.stable_diffusion(tmp_path / "sd")
    standins.edit(tmp_path / "sd/unet/config.json", **changes)
    with pytest.raises(ValueError, match=message):
        mk.load_model(tmp_path / "sd")


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_a_distilled_network_s_scheduler_is_refused_by_name(name: str, folder: Path) -> None:
    standins.edit(folder / "scheduler/scheduler_config.json", _class_name=name)
    with pytest.raises(ValueError, match=f"a {name} goes with a network that was distilled"):
        mk.load_model(folder)
    assert mk.load_model(folder, scheduler=ddim()).shape == (3, 16, 16)


Index = dict[str, Any]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "Zero123PlusPipeline", "vision_encoder": ["transformers", "CLIPVision"]},
         "a Zero123PlusPipeline, a pipeline with vision_encoder"),
        ({"_class_name": "StableDiffusionControlNetPipeline",
          "controlnet": ["diffusers", "ControlNetModel"]}, "a pipeline with controlnet"),
    ],
)  # fmt: skip
def test_pipelines_with_more_networks_are_refused_by_name(
    changes: Index, message: str, tmp_path: Path
) -> None:
    standins.stable_diffusion(tmp_path / "sd")
    standins.edit(tmp_path / "sd/model_index.json", **changes)
    with pytest.raises(ValueError, match=message):
        mk.load_model(tmp_path / "sd")


# Not by their networks, whose shapes are Stable Diffusion's, but by what they mean.
MEANT_OTHERWISE = [
    "Zero123PlusPipeline", "StableDiffusionImageVariationPipeline",
    "LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableUnCLIPPipeline", "StableDiffusionGLIGENPipeline", "PaintByExamplePipeline",
    "VersatileDiffusionPipeline", "AnimateDiffPipeline", "MarigoldDepthPipeline",
    "StableDiffusionLDM3DPipeline", "StableDiffusionUpscalePipeline",
    "StableDiffusionDepth2ImgPipeline", "AltDiffusionPipeline", "DDPMPipeline2",
    ["pipeline", "Evil"],
]  # fmt: skip


@pytest.mark.parametrize("name", MEANT_OTHERWISE, ids=str)
def test_a_pipeline_that_means_something_else_is_refused_by_its_name(
    name: Any, tmp_path: Path
) -> None:
    """The whole folder of Stable Diffusion, under another name; what is told is done."""
    from diffusers import StableDiffusionPipeline

    standins.stable_diffusion(tmp_path / "sd")
    plain, x = mk.load_model(tmp_path / "sd"), torch.randn(1, 4, 8, 8)
    standins.edit(tmp_path / "sd/model_index.json", _class_name=name)
    said = re.escape(f"sd is a {name}, and what such a pipeline's network means")
    with pytest.raises(ValueError, match=said + r".*StableDiffusionPipeline\.from_pretrained"):
        mk.load_model(tmp_path / "sd")
    if isinstance(name, str) and name == "Zero123PlusPipeline":
        told = StableDiffusionPipeline.from_pretrained(tmp_path / "sd", safety_checker=None)
        same(mk.load_model(told).noise(x, 600), plain.noise(x, 600))


def test_a_pipeline_in_memory_is_refused_by_its_class(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    class Zero123PlusPipeline(StableDiffusionPipeline):
        pass

    plain = standins.stable_diffusion(tmp_path / "sd")
    foreign = Zero123PlusPipeline(**plain.components, requires_safety_checker=False)
    with pytest.raises(ValueError, match="what was given is a Zero123PlusPipeline, and what"):
        mk.load_model(foreign)
    x = torch.randn(1, 4, 8, 8)
    told = StableDiffusionPipeline(**foreign.components, requires_safety_checker=False)
    same(mk.load_model(told).noise(x, 600), mk.load_model(plain).noise(x, 600))


COMMON = {
    "sd": [f"StableDiffusion{k}Pipeline" for k in ("", "Img2Img", "Inpaint", "PAG")],
    "sdxl": [f"StableDiffusionXL{k}Pipeline" for k in ("", "Img2Img", "Inpaint", "PAG")],
    "pixel": ["DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "RePaintPipeline", None],
    "dit": ["DiTPipeline", None],
}


@pytest.mark.parametrize("kind", COMMON)
def test_the_common_pipelines_are_read(kind: str, tmp_path: Path) -> None:
    place = tmp_path / kind
    make = {"sd": standins.stable_diffusion, "sdxl": sdxl, "dit": dit}
    make[kind](place) if kind in make else pixel(place, ddim())
    for name in COMMON[kind]:
        if name is not None:
            import diffusers

            assert hasattr(diffusers, name), "no name of diffusers' own"
        standins.edit(place / "model_index.json", _class_name=name)
        assert mk.load_model(place).shape
    (place / "model_index.json").unlink()
    assert mk.load_model(place).shape


def test_another_transformer_is_refused_by_its_class(tmp_path: Path) -> None:
    dit(tmp_path / "dit")
    standins.edit(tmp_path / "dit/transformer/config.json", _class_name="SD3Transformer2DModel")
    with pytest.raises(ValueError, match="is a SD3Transformer2DModel: mathkit reads.*mk.denoiser"):
        mk.load_model(tmp_path / "dit")

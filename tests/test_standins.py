"""Published models in their own layouts: pixel models of google/ddpm-*, and Stable Diffusion.

The networks are random; the oracles are the networks called by hand and diffusers' own pipeline.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import standins
import torch
from conftest import UNTRAINED
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import mathkit as mk
from mathkit import data
from mathkit.__main__ import main as command
from mathkit.diffusion import hub
from mathkit.diffusion.text import TextModel

pytestmark = UNTRAINED
T = 600
BIN, SAFE = "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"
FP16, FP16_BIN = SAFE.replace(".s", ".fp16.s"), BIN.replace(".b", ".fp16.b")
ROOT = Path(__file__).resolve().parent.parent


# The google/ddpm-* repositories ------------------------------------------------------------------


def test_a_legacy_repository_is_its_network(tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    place = standins.ddpm(tmp_path / "ddpm", standins.SMALL)
    p, x = mk.load_model(place), torch.randn(2, 3, 16, 16)
    stored = torch.load(place / BIN, weights_only=True)
    assert any(key.endswith("attentions.0.proj_attn.weight") for key in stored)
    unet = UNet2DModel.from_config(standins.SMALL)
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    unet.load_state_dict({".".join(names.get(s, s) for s in k.split(".")): v
                          for k, v in stored.items()})  # fmt: skip
    torch.testing.assert_close(p.noise(x, T), unet.eval()(x, T).sample, rtol=1e-4, atol=1e-5)
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    torch.testing.assert_close(p.alphas_cumprod, abar, rtol=1e-4, atol=0)
    assert mk.encoder(p, T)(x).shape == (2, 8, 2, 2) and p.image_shape == p.shape
    assert "pickle read weights-only" in repr(p)


def refused(change: Callable[[Path], object], tmp_path: Path) -> str:
    place = standins.ddpm(tmp_path / "ddpm", standins.SMALL)
    change(place)
    with pytest.raises(ValueError) as error:
        mk.load_model(place)
    return str(error.value)


def rewrite(name: str, **changes: Any) -> Callable[[Path], object]:
    return lambda place: standins.edit(place / name, **changes)


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "classes": (rewrite("config.json", class_embed_type="timestep"), "class_embed_type timestep"),
    "channels": (rewrite("config.json", out_channels=5), "3 -> 5"),
    "latent": (rewrite("model_index.json", vqvae=["diffusers", "VQModel"]), "latent model without"),
    "remote": (rewrite("config.json", _class_name="EvilModel"), "EvilModel: mathkit reads"),
    "zero SNR": (
        rewrite("scheduler_config.json", rescale_betas_zero_snr=True),
        "abar reaches 0.*predicts v",
    ),
}


@pytest.mark.parametrize("case", KINDS)
def test_pixel_models_of_another_kind_are_refused_unread(case: str, tmp_path: Path) -> None:
    change, message = KINDS[case]
    assert re.search(message, refused(change, tmp_path))


class Planted:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_pickle_with_code_is_refused_and_never_runs(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    said = refused(
        lambda place: torch.save({"conv_in.weight": Planted(mark)}, place / BIN), tmp_path
    )
    assert "weights-only loader" in said and not mark.exists()
    torch.load(tmp_path / "ddpm" / BIN, weights_only=False)
    assert mark.exists(), "the planted code does run where it may"


# The Hub -----------------------------------------------------------------------------------------


@pytest.mark.long
def test_without_a_network_every_name_fails_within_seconds() -> None:
    """Also the pinned one, whose commit the client would look up for half a minute."""
    code = """
import time, mathkit as mk
from huggingface_hub import HfApi, snapshot_download
for name in ("google/ddpm-celebahq-256", "google/ddpm-church-256"):
    began = time.monotonic()
    try:
        mk.load_model(name)
    except OSError as error:
        said = name in str(error) and 'mk.load_model("alice")' in str(error)
        print(time.monotonic() - began < 10, said)
"""
    env = os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["True"] * 4


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Hub of the repositories below tmp_path/remote, all at commit "c" * 40; asked: what for."""
    import huggingface_hub

    asked = SimpleNamespace(files=[], revisions=[], folder=tmp_path / "remote", up=True)

    def model_info(self: Any, name: str, revision: str | None, timeout: float) -> Any:
        if not asked.up:
            raise TimeoutError("no answer")
        place = asked.folder / name
        files = sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())
        asked.revisions.append(revision)
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=f) for f in files])

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        commit = "c" * 40 if revision in (None, "main") else str(revision)
        cache = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        (cache / "refs").mkdir(parents=True, exist_ok=True)
        (cache / "refs/main").write_text(commit)
        for file in allow_patterns:
            target = cache / "snapshots" / commit / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(asked.folder / name / file, target)
        asked.files += allow_patterns
        return str(cache / "snapshots" / commit)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    yield asked


def test_an_unpinned_model_says_its_commit_and_is_found_again_offline(
    remote: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    place = standins.ddpm(remote.folder / "google/ddpm-church-256", standins.SMALL)
    (place / "extra.py").write_text("raise SystemExit")
    p = mk.load_model("google/ddpm-church-256")
    assert p.revision == "c" * 40 in capsys.readouterr().out and remote.revisions == [None]
    wanted = ["config.json", BIN, "model_index.json", "scheduler_config.json"]
    assert sorted(remote.files) == wanted
    assert mk.load_model("google/ddpm-church-256", revision="c" * 40).revision == "c" * 40
    assert capsys.readouterr().out == "" and len(remote.revisions) == 1, "the cache has it"
    remote.up = False
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(mk.load_model("google/ddpm-church-256").noise(x, T), p.noise(x, T))
    with pytest.raises(OSError, match="TimeoutError: no answer"):
        mk.load_model("google/ddpm-cat-256")


def test_a_known_model_is_taken_at_its_commit_and_its_hash_checked(
    remote: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, commit = "google/ddpm-celebahq-256", "cd5c944777ea2668051904ead6cc120739b86c4d"
    place = standins.ddpm(remote.folder / name, standins.SMALL)
    with pytest.raises(ValueError, match="not the published file of SHA-256 efff897120"):
        mk.load_model(name)
    assert remote.revisions == [commit]
    monkeypatch.setattr(hub, "PUBLISHED", {(name, commit): data.sha256(place / BIN)})
    p = mk.load_model(name)
    assert p.revision == commit and "of the published SHA-256" in repr(p)
    assert capsys.readouterr().out == ""


def test_a_known_model_at_another_commit_is_better_than_none(
    remote: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Offline, with the newest commit in the cache and not the one we know."""
    name = "google/ddpm-celebahq-256"
    place = standins.ddpm(remote.folder / name, standins.SMALL)
    assert mk.load_model(name, revision="main").revision == "c" * 40
    remote.up = False
    capsys.readouterr()
    assert mk.load_model(name).revision == "c" * 40
    assert f"{name} at commit {'c' * 40}" in capsys.readouterr().out
    (place / BIN).unlink()
    with pytest.raises(OSError, match="no answer"):
        mk.load_model(name, revision="d" * 40)


def test_shards_are_fetched_by_their_index(remote: Any) -> None:
    from diffusers import UNet2DModel

    place = standins.ddpm(remote.folder / "someone/shards", standins.SMALL)
    (place / BIN).unlink()
    UNet2DModel.from_config(standins.SMALL).save_pretrained(place, max_shard_size="20KB")
    (place / "another.safetensors").write_text("not read")
    assert mk.load_model("someone/shards").shape == (3, 16, 16)
    assert sum("-of-" in file for file in remote.files) > 2
    assert "another.safetensors" not in remote.files
    remote.up = False
    assert mk.load_model("someone/shards").revision == "c" * 40


def test_a_repository_that_lacks_a_shard_is_refused_before_any_is_fetched(remote: Any) -> None:
    from diffusers import UNet2DModel

    place = standins.ddpm(remote.folder / "someone/shards", standins.SMALL)
    (place / BIN).unlink()
    UNet2DModel.from_config(standins.SMALL).save_pretrained(place, max_shard_size="20KB")
    lost = sorted(place.glob("*-of-*"))[1]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 is missing: {lost.name}\. Fetch the folder"):
        mk.load_model("someone/shards")
    assert not any("-of-" in file for file in remote.files)


def test_another_kind_is_refused_before_its_weights_are_fetched(remote: Any) -> None:
    place = standins.ddpm(remote.folder / "someone/classes", standins.SMALL)
    rewrite("config.json", class_embed_type="timestep")(place)
    with pytest.raises(ValueError, match="class_embed_type timestep"):
        mk.load_model("someone/classes")
    assert BIN not in remote.files


def test_a_broken_off_download_is_no_model_in_the_cache(remote: Any) -> None:
    place = standins.ddpm(remote.folder / "someone/half", standins.SMALL)
    (place / BIN).rename(place / "kept")
    with pytest.raises(FileNotFoundError, match="holds no diffusion_pytorch_model"):
        mk.load_model("someone/half")
    remote.up = False
    with pytest.raises(OSError, match="no answer"):
        mk.load_model("someone/half")
    remote.up, _ = True, (place / "kept").rename(place / BIN)
    assert mk.load_model("someone/half").shape == (3, 16, 16)


def test_a_cached_commit_without_its_scheduler_is_fetched_whole(remote: Any) -> None:
    """As diffusers leaves it after the network alone was loaded."""
    place = standins.ddpm(remote.folder / "someone/net", standins.SMALL)
    (place / "scheduler_config.json").rename(place / "kept")
    commit = "c" * 40
    with pytest.raises(FileNotFoundError, match="scheduler_config"):
        mk.load_model("someone/net", revision=commit)
    (place / "kept").rename(place / "scheduler_config.json")
    assert mk.load_model("someone/net", revision=commit).revision == commit


def test_full_precision_is_fetched_where_only_fp16_is_in_the_cache(remote: Any) -> None:
    from safetensors.torch import save_file

    place = standins.ddpm(remote.folder / "someone/both", standins.SMALL)
    state = data.read_tensors(place / BIN)
    save_file(state, place / SAFE)
    save_file({key: value.half() for key, value in state.items()}, place / FP16)
    commit = "c" * 40
    half = mk.load_model("someone/both", dtype=torch.float16, revision=commit)
    assert "of its fp16 files" in repr(half) and SAFE not in remote.files
    remote.up = False
    assert "of its fp16 files" in repr(mk.load_model("someone/both", revision=commit))
    remote.up = True
    assert "fp16" not in repr(mk.load_model("someone/both", revision=commit))
    assert len(remote.revisions) == 2 and SAFE in remote.files


@pytest.mark.parametrize(
    ("there", "full", "half"),
    [
        ([SAFE, BIN, FP16, FP16_BIN], SAFE, FP16),
        ([BIN, FP16_BIN], BIN, FP16_BIN),
        ([SAFE, BIN], SAFE, SAFE),
        ([FP16, BIN], FP16, FP16),
        (["diffusion_pytorch_model.non_ema.safetensors", "v1-5-pruned.ckpt"], None, None),
    ],
)
def test_safetensors_before_pickles_and_the_precision_asked_for(
    there: list[str], full: str | None, half: str | None
) -> None:
    assert hub._choice(there.__contains__, "", False) == full
    assert hub._choice(there.__contains__, "", True) == half
    inside = [f"text_encoder/{name.replace('diffusion_pytorch_', '')}" for name in there]
    inside = [
        name.replace("/model.", "/pytorch_model.") if "bin" in name else name for name in inside
    ]
    chosen = hub._choice(inside.__contains__, "text_encoder", False)
    assert chosen == (inside[there.index(full)] if full else None)


# Text models: the interface ----------------------------------------------------------------------


def text_model(prediction: str = "epsilon", dtype: torch.dtype = torch.float32) -> TextModel:
    unet, vae = standins.text_networks()
    abar = standins.scheduler(prediction).alphas_cumprod
    fine = torch.promote_types(dtype, torch.float32)
    return TextModel(unet.to(dtype), abar, vae.to(fine), standins.letters, prediction)


def by_hand(p: TextModel, x: Tensor, t: int, prompt: str) -> Tensor:
    """What the network predicts, given the text once for each item."""
    texts = standins.letters(prompt).to(x.dtype).repeat(len(x), 1, 1)
    return p.unet(x, t, encoder_hidden_states=texts).sample


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_given_a_text(prediction: str) -> None:
    p, x = text_model(prediction), torch.randn(3, 4, 8, 8)
    q, abar = p.prompted("a smiling man"), p.alphas_cumprod[T]
    s, n = float(abar.sqrt()), float((1 - abar).sqrt())
    for model, prompt in ((p, ""), (q, "a smiling man"), (q.prompted("a"), "a")):
        out = by_hand(p, x, T, prompt)
        eps, clean = (
            (out, (x - n * out) / s)
            if prediction == "epsilon"
            else (n * x + s * out, s * x - n * out)
        )
        torch.testing.assert_close(model.noise(x, T), eps, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.clean(x, T), clean, rtol=1e-4, atol=1e-4)
    assert (p.noise(x, T) - q.noise(x, T)).abs().max() > 0.01, "the text is heard"
    assert "'a smiling man'" in repr(q) and "prompt ''" in repr(p) and q.unet is p.unet


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_guidance_leads_away_from_the_negative_text(prediction: str) -> None:
    p, x = text_model(prediction), torch.randn(2, 4, 8, 8)
    q = p.prompted("a man", guidance=7.5, negative="frowning")
    yes, no = (p.prompted(text) for text in ("a man", "frowning"))
    for f in ("noise", "clean"):
        wanted, unwanted = getattr(yes, f)(x, T), getattr(no, f)(x, T)
        guided = unwanted + 7.5 * (wanted - unwanted)
        torch.testing.assert_close(getattr(q, f)(x, T), guided, rtol=1e-4, atol=1e-3)
    assert torch.equal(p.prompted("a man", 1.0, "frowning").noise(x, T), yes.noise(x, T))
    torch.testing.assert_close(p.prompted("a man", 0.0).noise(x, T), p.noise(x, T))
    assert "guidance 7.5" in repr(q)


def test_h_is_the_prompt_s_and_an_edit_reaches_every_call() -> None:
    p, x = text_model(), torch.randn(2, 4, 8, 8)
    kept: list[Tensor] = []
    hook = p.unet.mid_block.register_forward_hook(lambda *call: kept.append(call[2]))
    by_hand(p, x, T, "a man")
    hook.remove()
    for q in (p.prompted("a man"), p.prompted("a man", guidance=5.0)):
        h = mk.encoder(q, T)(x)
        assert h.shape == (2, 16, 4, 4)
        torch.testing.assert_close(h, kept[0], rtol=1e-4, atol=1e-5)
    seen: list[int] = []

    def nothing(h: Tensor) -> Tensor:
        seen.append(len(h))
        return 0 * h

    mk.inject(nothing, T, T, 1.0)(p.prompted("a man", guidance=5.0), x, T)
    assert seen == [2, 2]


def test_encode_and_decode_are_the_vae_with_its_scale() -> None:
    p, images = text_model(), torch.rand(2, 3, 16, 16) * 2 - 1
    assert p.image_shape == (3, 16, 16) and p.shape == (4, 8, 8)
    x0 = p.encode(images)
    torch.testing.assert_close(
        x0, 0.4 * p.vae.encode(images).latent_dist.mean, rtol=1e-4, atol=1e-5
    )
    assert torch.equal(p.encode(x0), x0), "x_0 stays x_0"
    decoded = p.vae.decode(x0 / 0.4).sample
    torch.testing.assert_close(p.decode(x0), decoded, rtol=1e-4, atol=1e-5)
    assert p.decode(x0).dtype == torch.float32 and not p.decode(x0).requires_grad


def wrong_images() -> dict[str, tuple[Any, str]]:
    images = torch.zeros(2, 3, 16, 16)
    return {
        "size": (images[..., :12], r"tensor \(B, 3, 16, 16\), got \(2, 3, 16, 12\)"),
        "grey": (images[:, :1], r"got \(2, 1, 16, 16\)"),
        "one": (images[0], r"one item is images\[None\]"),
        "bytes": (images.byte(), "torch.uint8.*127.5"),
        "range": (images + 200, r"in \[-1, 1\], got values from 200 to 200"),
        "nan": (images / 0, "images holds NaN"),
        "latents": (torch.zeros(1, 4, 8, 8) / 0, "x_0 holds NaN"),
    }


@pytest.mark.parametrize("case", wrong_images())
def test_images_of_another_kind_are_refused(case: str) -> None:
    images, message = wrong_images()[case]
    with pytest.raises(ValueError, match=message):
        text_model().encode(images)


def test_decode_takes_latents_alone() -> None:
    with pytest.raises(ValueError, match=r"x_0 is a tensor \(B, 4, 8, 8\), got \(1, 3, 16, 16\)"):
        text_model().decode(torch.zeros(1, 3, 16, 16))


@pytest.mark.long
def test_inversion_takes_images_or_latents_and_comes_back() -> None:
    p, images = text_model().prompted("a smiling man"), torch.rand(2, 3, 16, 16) * 2 - 1
    few, same = (mk.invert(p, x, T, steps=3) for x in (images, p.encode(images)))
    assert torch.equal(few, same)
    latents, errors = p.encode(images), []
    for steps in (20, 60):
        xt = mk.invert(p, images, T, steps=steps, refine=3)
        errors.append((mk.denoise(p, xt, T, steps=steps) - latents).norm() / latents.norm())
    assert errors[1] < errors[0] / 2, errors
    assert mk.sample(p, 2, steps=3).shape == (2, 4, 8, 8)


@pytest.mark.long
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_jacobians_through_cross_attention_and_layer_norm(prediction: str) -> None:
    """Push against central differences and forward mode, pull against autograd, in float64."""
    p = text_model(prediction, torch.float64).prompted("a smiling man")
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    maps = {"h": mk.encoder(p, T), "mean": mk.posterior_mean(p, T), "decode": p.decode,
            "pooled": mk.encoder(p, T, pool="sum")}  # fmt: skip
    for name, f in maps.items():
        A = mk.jacobian(f, x)
        assert mk.check_adjoint(A) < 1e-12, name
        V, U = (torch.randn(5, *s, dtype=torch.float64) for s in (A.in_shape, A.out_shape))
        pushed = A.push(V)
        slope = torch.cat([(f(x + 1e-6 * v) - f(x - 1e-6 * v)) / 2e-6 for v in V])
        torch.testing.assert_close(pushed, slope, rtol=1e-5, atol=1e-7)
        with sdpa_kernel(SDPBackend.MATH):
            forward = torch.func.vmap(lambda v, f=f: torch.func.jvp(f, (x,), (v[None],))[1][0])(V)
        torch.testing.assert_close(pushed, forward)
        point = x.clone().requires_grad_()
        (pulled,) = torch.autograd.grad((f(point) * U[:1]).sum(), point)
        torch.testing.assert_close(A.pull(U)[:1], pulled)


class Attending(torch.nn.Module):
    """A network of somebody's own, with one kind of attention over its 8 places."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, mask = kind, torch.linspace(-2, 1, 64).view(8, 8)
        self.register_buffer("mask", mask if kind == "mask" else None)
        self.qkv = torch.nn.Linear(4, 12)
        self.whole = torch.nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.kind == "module":
            return self.whole(x, x.cos(), x.sin(), need_weights=False)[0]
        if self.kind == "weights":
            return self.whole(x, x.cos(), x.sin())[0]
        q, k, v = self.qkv(x).view(len(x), 8, 3, 2, 2).permute(2, 0, 3, 1, 4)
        how = {"attn_mask": self.mask, "is_causal": self.kind == "causal", "scale": 0.7}
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, **how)
        return out.transpose(1, 2).reshape(x.shape)


def attending(kind: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A map with attention in it, in float64, and a point."""
    if kind in ("h", "mean", "decode"):
        p = text_model(dtype=torch.float64).prompted("a smiling man")
        f = {"h": mk.encoder(p, T), "mean": mk.posterior_mean(p, T), "decode": p.decode}[kind]
        return f, torch.randn(1, 4, 8, 8, dtype=torch.float64)
    net = Attending(kind).double()
    p = mk.denoiser(net, standins.scheduler("epsilon").alphas_cumprod, (8, 4))
    return mk.posterior_mean(p, T), torch.randn(1, 8, 4, dtype=torch.float64)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet")
@pytest.mark.parametrize(
    "kind", ["h", "mean", "decode", "plain", "causal", "mask", "module", "weights"]
)
def test_second_derivatives_through_attention(kind: str) -> None:
    """Every way that torch has to H v, H of |f|^2 / 2, against differences of its gradient."""
    f, x = attending(kind)
    v = torch.randn_like(x)

    def loss(y: Tensor) -> Tensor:
        return f(y).square().sum() / 2

    def gradient(y: Tensor) -> Tensor:
        y = y.detach().requires_grad_()
        return torch.autograd.grad(loss(y), y)[0]

    def back_and_back(y: Tensor) -> Tensor:
        y = y.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss(y), y, create_graph=True)
        return torch.autograd.grad((g * v).sum(), y)[0]

    def of_a_push(y: Tensor) -> Tensor:
        y = y.detach().requires_grad_()
        A = mk.jacobian(lambda z: torch.autograd.grad(loss(z), z, create_graph=True)[0], y)
        return A.push(v)

    e, func = 1e-5, torch.func
    wanted = (gradient(x + e * v) - gradient(x - e * v)) / (2 * e)
    assert wanted.abs().max() > 1e-3
    for name, found in {
        "reverse over reverse": back_and_back(x),
        "forward over reverse": func.jvp(func.grad(loss), (x,), (v,))[1],
        "reverse over reverse of functions": func.vjp(func.grad(loss), x)[1](v)[0],
        "many at once": func.vmap(func.vjp(func.grad(loss), x)[1])(torch.stack([v, v]))[0][0],
        "reverse over forward": func.grad(lambda y: func.jvp(loss, (y,), (v,))[1])(x),
        "a jacobian of the gradient": of_a_push(x),
    }.items():
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6), name
    J, u = mk.jacobian(f, x), f(x)
    torch.testing.assert_close(func.jvp(f, (x,), (v,))[1], J.push(v))
    torch.testing.assert_close(gradient(x), J.pull(u))


def test_the_first_derivative_keeps_no_weights_of_attention() -> None:
    """They would be as large as the square of the places."""
    p, x = text_model().prompted("a man"), torch.randn(1, 4, 8, 8, requires_grad=True)
    sizes: list[int] = []

    def kept(a: Tensor) -> Tensor:
        sizes.append(a.shape[-2:].numel() if a.ndim > 3 else 0)
        return a

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda a: a):
        out = p.noise(x, T)
    assert max(sizes) < 64 * 64
    with sdpa_kernel(SDPBackend.MATH), torch.autograd.graph.saved_tensors_hooks(kept, lambda a: a):
        p.unet(x, T, encoder_hidden_states=standins.letters("a man"))
    assert max(sizes) >= 64 * 64, "so it is measured"
    assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()


def test_the_top_directions_of_a_text_model_and_moves_along_them() -> None:
    p, x = text_model(dtype=torch.float64).prompted("a man"), torch.randn(1, 4, 8, 8).double()
    A = mk.jacobian(mk.encoder(p, T), x)
    r = mk.svd(A, 3)
    exact = torch.linalg.svdvals(A.dense())[:3]
    torch.testing.assert_close(r.S, exact, rtol=1e-3, atol=0)
    assert mk.move(p, x, T, r.V[0], 0.2, 2).shape == (3, 1, 4, 8, 8)
    assert mk.guide(p, x, T, r.V[0], 0.2, 2).shape == (3, 1, 4, 8, 8)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_speaks_float32(dtype: torch.dtype) -> None:
    p, fine = (text_model(dtype=d).prompted("a man") for d in (dtype, torch.float32))
    x = torch.randn(2, 4, 8, 8)
    eps, exact = p.noise(x, T), fine.noise(x, T)
    assert eps.dtype == torch.float32 and {w.dtype for w in p.unet.parameters()} == {dtype}
    assert 0 < (eps - exact).abs().max() < 0.05 * exact.abs().max()
    assert torch.equal(p.decode(x), fine.decode(x)), "the VAE stays in float32"
    h = mk.jacobian(mk.encoder(p, T), x[:1]).push(torch.randn(2, 4, 8, 8))
    assert h.dtype == torch.float32 and bool(h.isfinite().all())


@pytest.mark.parametrize("prompt", [None, ["a man"], 3])
def test_a_prompt_is_one_text(prompt: Any) -> None:
    with pytest.raises(ValueError, match="a prompt is one text, got"):
        text_model().prompted(prompt)
    with pytest.raises(ValueError, match="a prompt is one text, got"):
        text_model().prompted("a man", negative=prompt)


def test_parts_of_two_models_are_refused() -> None:
    unet, vae = standins.text_networks()
    abar = standins.scheduler("epsilon").alphas_cumprod
    with pytest.raises(ValueError, match=r"texts of width 12, got \(1, 5, 7\)"):
        TextModel(unet, abar, vae, lambda text: torch.zeros(1, 5, 7))
    vae.register_to_config(latent_channels=8)
    with pytest.raises(ValueError, match="takes 4 channels, its VAE gives 8"):
        TextModel(unet, abar, vae, standins.letters)
    with pytest.raises(ValueError, match="guidance is a finite number"):
        text_model().prompted("a man", guidance=float("nan"))


def test_texts_bound_in_inference_mode_can_be_differentiated() -> None:
    p = text_model()
    with torch.inference_mode():
        q = p.prompted("a man")
    x = torch.randn(1, 4, 8, 8)
    assert mk.jacobian(mk.encoder(q, T), x).push(x).abs().max() > 0


# Text models: the repository ---------------------------------------------------------------------


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def diffusion(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of a Stable Diffusion 1.x or 2.x, and the pipeline that wrote it."""
    place = tmp_path_factory.mktemp(request.param) / "sd"
    return place, standins.stable_diffusion(place, request.param)


@pytest.fixture
def folder(diffusion: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(diffusion[0], tmp_path / "sd"))


@pytest.mark.parametrize(
    ("prompt", "guidance", "negative"),
    [("a smiling man", 1.0, ""), ("", 1.0, ""), ("a smiling man", 7.5, ""),
     ("a smiling man", 7.5, "a frowning man")],
)  # fmt: skip
def test_pictures_are_those_of_diffusers_pipeline(
    diffusion: tuple[Path, Any], prompt: str, guidance: float, negative: str
) -> None:
    place, pipeline = diffusion
    p, x = mk.load_model(place).prompted(prompt, guidance, negative), torch.randn(1, 4, 8, 8)
    asked: dict[str, Any] = {"guidance_scale": guidance, "num_inference_steps": 10, "latents": x}
    asked |= {"negative_prompt": negative or None}
    latents = pipeline(prompt, output_type="latent", **asked).images
    x0 = mk.denoise(p, x, 901, times=range(901, 0, -100))
    torch.testing.assert_close(x0, latents, rtol=1e-4, atol=1e-4)
    images = pipeline(prompt, output_type="pt", **asked).images
    torch.testing.assert_close((p.decode(x0) / 2 + 0.5).clamp(0, 1), images, rtol=1e-4, atol=1e-4)


def test_a_repository_without_a_prompt_is_given_the_empty_one(
    diffusion: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    place, pipeline = diffusion
    p = mk.load_model(place)
    text, _ = pipeline.encode_prompt("", torch.device("cpu"), 1, False)
    x = torch.randn(2, 4, 8, 8)
    out = pipeline.unet(x, T, encoder_hidden_states=text.repeat(2, 1, 1)).sample
    torch.testing.assert_close(p._output(x, T), out, rtol=1e-4, atol=1e-5)
    assert p.prediction == pipeline.scheduler.config.prediction_type
    assert p.revision == f"sha256:{data.sha256(place / 'unet' / SAFE)}"
    state = torch.get_rng_state()
    capfd.readouterr()
    mk.load_model(place)
    assert torch.equal(torch.get_rng_state(), state), "loading draws nothing"
    assert capfd.readouterr() == ("", ""), "nor does it say anything"


@pytest.mark.long
def test_published_files_of_2022_are_the_same_model(folder: Path) -> None:
    """Pickles everywhere, the text encoder's names with a prefix and a table of positions, the
    VAE's attention with its old names and no scaling factor in its config."""
    new = mk.load_model(folder).prompted("a smiling man")
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (folder / part).glob("*.safetensors")
        state = data.read_tensors(file)
        if part == "text_encoder":
            state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()}
            state["text_model.embeddings.position_ids"] = torch.arange(16)[None]
        state = {standins.old_name(k) if part == "vae" else k: v for k, v in state.items()}
        torch.save(state, folder / part / ("pytorch_model.bin" if part == "text_encoder" else BIN))
        file.unlink()
    config = json.loads((folder / "vae/config.json").read_text())
    del config["scaling_factor"]
    (folder / "vae/config.json").write_text(json.dumps(config))
    old, x = mk.load_model(folder).prompted("a smiling man"), torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(old.noise(x, T), new.noise(x, T))
    torch.testing.assert_close(old.decode(0.18215 * x), new.decode(0.4 * x))
    assert "pickle read weights-only" in repr(old)


def test_fp16_files_are_taken_for_a_half_model(folder: Path) -> None:
    from safetensors.torch import save_file

    for file in list(folder.rglob("*.safetensors")):
        state = {k: v.half() for k, v in data.read_tensors(file).items()}
        save_file(state, file.with_suffix(".fp16.safetensors"))
        if file.parent.name == "unet":
            file.unlink()  # as in the mirrors that hold half precision alone
    p, x = mk.load_model(folder, dtype=torch.float16), torch.randn(1, 4, 8, 8)
    fine = mk.load_model(folder)
    assert p.dtype == torch.float16 and fine.dtype == torch.float32
    assert {w.dtype for w in (*p.vae.parameters(), *fine.unet.parameters())} == {torch.float32}
    assert "of its fp16 files" in repr(p) and "of its fp16 files" in repr(fine)
    torch.testing.assert_close(p.noise(x, T), fine.noise(x, T), rtol=0.05, atol=0.02)
    half = data.read_tensors(folder / "vae" / FP16)["decoder.conv_in.weight"].float()
    assert torch.equal(p.vae.decoder.conv_in.weight, half)
    assert not torch.equal(fine.vae.decoder.conv_in.weight, half)


def test_nothing_of_a_repository_is_run(folder: Path, tmp_path: Path) -> None:
    """Safety checker unread, no Python file imported, no code in a pickle."""
    mark = tmp_path / "mark"
    (folder / "safety_checker").mkdir()
    torch.save(Planted(mark), folder / "safety_checker/pytorch_model.bin")
    planted = f"import pathlib; pathlib.Path({str(mark)!r}).touch()"
    for name in ("pipeline.py", "unet/evil.py", "tokenizer/evil.py", "text_encoder/evil.py"):
        (folder / name).write_text(planted)
    auto = {"AutoTokenizer": ["evil.T", "evil.T"], "AutoModel": "evil.M", "AutoConfig": "evil.C"}
    rewrite("tokenizer/tokenizer_config.json", auto_map=auto)(folder)
    rewrite("text_encoder/config.json", auto_map=auto)(folder)
    mk.load_model(folder)
    (folder / "text_encoder/model.safetensors").unlink()
    torch.save({"weight": Planted(mark)}, folder / "text_encoder/pytorch_model.bin")
    with pytest.raises(ValueError, match="refused: torch's weights-only loader"):
        mk.load_model(folder)
    assert not mark.exists()


def remove(part: str) -> Callable[[Path], object]:
    return lambda place: shutil.rmtree(place / part)


def lose(key: str) -> Callable[[Path], object]:
    def change(place: Path) -> None:
        from safetensors.torch import save_file

        file = place / "text_encoder/model.safetensors"
        save_file({k: v for k, v in data.read_tensors(file).items() if key not in k}, file)

    return change


def without_words(name: str) -> Callable[[Path], object]:
    def change(place: Path) -> None:
        for file in ("tokenizer.json", name):
            (place / "tokenizer" / file).unlink(missing_ok=True)  # older ones write no one file

    return change


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no VAE": (remove("vae"), "no vae/config.json"),
    "no text encoder": (remove("text_encoder"), "no text_encoder/config.json"),
    "no tokenizer": (remove("tokenizer"), "holds no tokenizer/"),
    "no words": (without_words("vocab.json"), "without its words a text model reads all texts"),
    "no merged words": (without_words("merges.txt"), "nor vocab.json with merges.txt"),
    "no VAE weights": (lambda f: (f / "vae" / SAFE).unlink(), "vae holds no diffusion_pytorch"),
    "another VAE": (rewrite("vae/config.json", _class_name="VQModel"), "VQModel: mathkit reads"),
    "another encoder": (rewrite("text_encoder/config.json", architectures=["T5EncoderModel"]),
                        "T5EncoderModel: mathkit reads CLIPTextModel"),
    "SDXL": (rewrite("unet/config.json", addition_embed_type="text_time"),
             "no text_encoder_2/config.json"),
    "inpainting": (rewrite("unet/config.json", in_channels=9), "9 -> 4"),
    "half a text encoder": (lose("layers.1"), "does not fit its config.json"),
    "a short VAE": (rewrite("vae/config.json", block_out_channels=[4, 12]), "does not fit"),
}  # fmt: skip


@pytest.mark.parametrize("diffusion", ["epsilon"], indirect=True)
@pytest.mark.parametrize("case", BAD)
def test_text_repositories_of_another_kind_are_refused(case: str, folder: Path) -> None:
    change, message = BAD[case]
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        mk.load_model(folder)


@pytest.mark.parametrize("diffusion", ["epsilon"], indirect=True)
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt"])
def test_words_that_are_a_pointer_of_git_lfs_are_named(folder: Path, name: str) -> None:
    (folder / "tokenizer" / name).write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=f"tokenizer/{name} is a pointer of git-lfs"):
        mk.load_model(folder)


@pytest.mark.parametrize("diffusion", ["epsilon"], indirect=True)
def test_a_text_models_network_alone_is_told_to_join_a_pipeline(folder: Path) -> None:
    """As a training leaves it, checkpoint-N/unet_ema; what is told is done."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    ema, scheduler = folder.parent / "checkpoint-500/unet_ema", folder / "scheduler"
    for place in (ema, ema.parent / "unet"):
        shutil.copytree(folder / "unet", place)
    for place in (ema, ema.parent):
        with pytest.raises(FileNotFoundError, match=r"network alone\. Make a pipeline"):
            mk.load_model(place, scheduler=scheduler)
    network = UNet2DConditionModel.from_pretrained(ema)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, unet=network, safety_checker=None)
    x = torch.randn(1, 4, 8, 8)
    ours = mk.load_model(pipeline).noise(x, 600)
    assert torch.allclose(ours, mk.load_model(folder).noise(x, 600), atol=1e-5)


@pytest.mark.parametrize("diffusion", ["epsilon"], indirect=True)
def test_a_prompt_that_is_too_long_is_refused(diffusion: Any) -> None:
    p = mk.load_model(diffusion[0])
    p.prompted("man " * 14)
    with pytest.raises(ValueError, match="at most 14 tokens, got 15: 'man man"):
        p.prompted("man " * 15)


@pytest.mark.parametrize("diffusion", ["epsilon"], indirect=True)
def test_without_transformers_a_text_model_says_what_to_install(
    diffusion: Any,
    remote: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (needed,) = project["optional-dependencies"]["text"]
    shutil.copytree(diffusion[0], remote.folder / "someone/sd")
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in (diffusion[0], "someone/sd"):
        with pytest.raises(ImportError, match=f'pip install "{needed}"'):
            mk.load_model(name)
    assert not any("safetensors" in file for file in remote.files), "said too late"
    assert command(["atlas", "--out", "unused", "--model", "someone/sd"]) == 1
    assert f'atlas: text models need the package transformers: pip install "{needed}"' in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("diffusion", ["epsilon"], indirect=True)
def test_a_text_model_from_the_hub(remote: Any, folder: Path) -> None:
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/config.json").write_text("{}")
    (folder / "v1-5-pruned.ckpt").write_text("not read")
    (folder / "unet" / BIN).write_text("not read")
    shutil.copytree(folder, remote.folder / "someone/sd")
    p = mk.load_model("someone/sd")
    assert p.revision == "c" * 40 and p.prompted("a man").shape == (4, 8, 8)
    read = {f for f in remote.files if not f.endswith((".json", ".txt"))}
    assert read == {f"unet/{SAFE}", f"vae/{SAFE}", "text_encoder/model.safetensors"}
    assert not any("safety" in file for file in remote.files)


# The full size -----------------------------------------------------------------------------------


class Peak:
    """The most memory this process held, sampled; and seconds."""

    def __enter__(self) -> "Peak":
        self.bytes, self.done = 0, threading.Event()
        self.watch = threading.Thread(target=self._look, daemon=True)
        self.watch.start()
        self.began = time.monotonic()
        return self

    def _look(self) -> None:
        while not self.done.wait(0.02):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.bytes = max(self.bytes, pages * os.sysconf("SC_PAGE_SIZE"))

    def __exit__(self, *error: object) -> None:
        self.seconds = time.monotonic() - self.began
        self.done.set()
        self.watch.join()

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, peak {self.bytes / 2**30:.2f} GiB"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_the_published_networks_at_full_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """google/ddpm-cifar10-32 and google/ddpm-celebahq-256: sizes, and one push and one pull."""
    small = mk.load_model(standins.ddpm(tmp_path / "cifar", standins.CIFAR))
    assert sum(w.numel() for w in small.unet.parameters()) == 35_746_307
    assert mk.encoder(small, 700)(torch.randn(1, 3, 32, 32)).shape == (1, 256, 4, 4)
    place = standins.ddpm(tmp_path / "celebahq", standins.CELEBAHQ)
    assert 454_692_876 < (place / BIN).stat().st_size < 455_500_000
    said = {}
    with Peak() as said["load"]:
        p = mk.load_model(place, device="cpu")
    assert sum(w.numel() for w in p.unet.parameters()) == 113_673_219
    assert p.shape == (3, 256, 256)
    x = torch.randn(1, *p.shape)
    with Peak() as said["eps"]:
        assert p.noise(x, 700).shape == x.shape
    f = mk.encoder(p, 700)
    with Peak() as said["encoder"]:
        assert f(x).shape == (1, 512, 8, 8)
    with Peak() as said["linearise"]:
        A = mk.jacobian(f, x)
    v, u = torch.randn(1, *A.in_shape), torch.randn(1, *A.out_shape)
    with Peak() as said["first push"]:
        Jv = A.push(v)
    with Peak() as said["push"]:
        A.push(v)
    with Peak() as said["pull"]:
        Jtu = A.pull(u)
    left, right = (Jv * u).double().sum(), (v * Jtu).double().sum()
    assert abs(left - right) < 1e-4 * Jv.norm() * u.norm()
    with capsys.disabled():
        print("", *(f"{name:<10} {peak}" for name, peak in said.items()), sep="\n")

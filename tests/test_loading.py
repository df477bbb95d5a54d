"""Loading: both diffusers layouts, the built-in model, the Hub without a network."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_unet
from standins import edit, old_name

import mathkit as mk
from mathkit import data
from mathkit.diffusion import hub, load
from studies import ship

Change = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What DDPMPipeline.save_pretrained writes, in float16."""
    from diffusers import DDPMPipeline, DDPMScheduler

    place = tmp_path / "pipeline"
    unet = make_tiny_unet(torch.float16)
    DDPMPipeline(unet, DDPMScheduler(prediction_type="v_prediction")).save_pretrained(place)
    return place


def legacy(folder: Path, place: Path, suffix: str = ".bin") -> Path:
    """The same model in the old layout: everything at the root, old attention names, a .bin."""
    place.mkdir()
    state = data.read_tensors(folder / "unet/diffusion_pytorch_model.safetensors")
    state = {old_name(key): value for key, value in state.items()}
    assert any("proj_attn" in key for key in state)
    if suffix == ".bin":
        torch.save(state, place / "diffusion_pytorch_model.bin")
    shutil.copy(folder / "unet/config.json", place)
    shutil.copy(folder / "scheduler/scheduler_config.json", place)
    return place


def test_a_saved_pipeline_loads_frozen_in_float32(folder: Path) -> None:
    before = torch.get_rng_state()
    p = mk.load_model(folder)
    assert torch.equal(torch.get_rng_state(), before), "loading draws nothing"
    assert not p.unet.training and not any(w.requires_grad for w in p.unet.parameters())
    assert {w.dtype for w in p.unet.parameters()} == {torch.float32}
    assert p.shape == (3, 16, 16) and p.prediction == "v_prediction"
    assert p.alphas_cumprod.dtype == torch.float64 and len(p.alphas_cumprod) == 1000
    unet, x = make_tiny_unet(torch.float16).float(), torch.randn(2, 3, 16, 16)
    abar = p.alphas_cumprod[400]
    eps = abar.sqrt() * unet(x, 400).sample + (1 - abar).sqrt() * x
    torch.testing.assert_close(p.noise(x, 400), eps.float(), rtol=1e-4, atol=1e-5)
    digest = data.sha256(folder / "unet/diffusion_pytorch_model.safetensors")
    assert p.revision == f"sha256:{digest}" and str(folder) in repr(p)


def test_a_built_in_model_stays_on_the_cpu_and_others_take_the_gpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted GPU: torch says there is one, and no network is moved there."""
    asked: list[str] = []
    network = load._network

    def moved(config: dict[str, object], file: Path, device: torch.device, dtype: object) -> object:
        asked.append(device.type)
        return network(config, file, torch.device("cpu"), torch.float32)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(load, "_network", moved)
    for name in ("understudy", folder):
        mk.load_model(name)
    mk.load_model("understudy", device="cuda")
    assert asked == ["cpu", "cuda", "cuda"]


def test_dtype_and_device(folder: Path) -> None:
    p = mk.load_model(folder, device="cpu", dtype=torch.float64)
    assert p.noise(torch.randn(1, 3, 16, 16, dtype=torch.float64), 3).dtype == torch.float64
    assert p.noise(torch.randn(1, 3, 16, 16), 3).dtype == torch.float32
    if not torch.cuda.is_available():
        assert p.device.type == "cpu" == mk.load_model(folder).device.type
        with pytest.raises(ValueError, match="no device cuda"):
            mk.load_model(folder, device="cuda")
    with pytest.raises(ValueError, match="no device mps"):
        mk.load_model(folder, device="mps")


def test_the_old_layout_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    new, old = mk.load_model(folder), mk.load_model(legacy(folder, tmp_path / "old"))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(new.noise(x, 500), old.noise(x, 500))
    assert "pickle read weights-only" in repr(old) and "pickle" not in repr(new)


def test_safetensors_are_preferred(folder: Path, tmp_path: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"not read")
    assert mk.load_model(folder).shape == (3, 16, 16)


def test_a_pickle_that_is_no_state_is_refused(folder: Path, tmp_path: Path) -> None:
    old = legacy(folder, tmp_path / "old", suffix="")
    (old / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(ValueError, match="refused"):
        mk.load_model(old)


@pytest.fixture
def shipped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    data = tmp_path / "data"
    ship.copy_in({"alice": folder}, command="c", seed=0, metrics={}, into=data)
    monkeypatch.setenv("MATHKIT_DATA", str(data))
    return data


def test_the_built_in_model_is_hash_checked(shipped: Path, folder: Path) -> None:
    p, x = mk.load_model("alice"), torch.randn(1, 3, 16, 16)
    assert torch.equal(p.noise(x, 9), mk.load_model(folder).noise(x, 9))
    assert "built-in alice" in repr(p)
    edit(shipped / "alice/scheduler/scheduler_config.json", beta_end=0.03)
    with pytest.raises(ValueError, match="not the file listed"):
        mk.load_model("alice")


def test_unknown_names_are_told_what_there_is(shipped: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"built-in name \(.*alice.*\).*Hub id"):
        mk.load_model("alcie")
    with pytest.raises(ValueError, match="revision belongs to Hub"):
        mk.load_model("alice", revision="main")


BAD: dict[str, tuple[Change, str]] = {
    "no config": (lambda f: (f / "unet/config.json").unlink(), "no diffusers model.*config.json"),
    "no schedule": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json"),
    "no weights": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(), "holds no diffusion_py"
    ),
    "text": (lambda f: edit(f / "unet/config.json", _class_name="UNet2DConditionModel"), "no vae"),
    "video": (lambda f: edit(f / "unet/config.json", _class_name="UNet3DConditionModel"),
              "UNet3DConditionModel: mathkit reads UNet2DModel"),
    "flow": (lambda f: (f / "scheduler/scheduler_config.json").write_text(
        '{"_class_name": "FlowMatchEulerDiscreteScheduler"}'), "with betas.*FlowMatch"),
    "width": (lambda f: edit(f / "unet/config.json", block_out_channels=[4, 4, 8, 16]),
              "does not fit its config.json"),
    "classes": (lambda f: edit(f / "unet/config.json", class_embed_type="timestep"),
                "class_embed_type timestep"),
    "size": (lambda f: edit(f / "unet/config.json", sample_size=None), "no sample_size"),
    "prediction": (lambda f: edit(f / "scheduler/scheduler_config.json", prediction_type="flow"),
                   "prediction"),
    "json": (lambda f: (f / "unet/config.json").write_text("{"), "is no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_folders_that_are_no_such_model(folder: Path, case: str) -> None:
    change, message = BAD[case]
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError, NotImplementedError), match=message):
        mk.load_model(folder)


def test_no_network_is_said_quickly_and_names_the_built_in_model() -> None:
    began = time.monotonic()
    with pytest.raises(OSError, match=r"google/ddpm-celebahq-256.*load_model\(\"alice\"\)"):
        mk.load_model("google/ddpm-celebahq-256", revision="cd5c944777ea")
    assert time.monotonic() - began < 5


def cached(cache: Path, source: Path, name: str, commit: str) -> None:
    """A Hub repository as the cache keeps it."""
    place = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(source, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(commit)


def test_a_cached_hub_model_needs_no_network_and_its_commit_is_recorded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit, old = "a" * 40, legacy(folder, tmp_path / "old")
    cached(tmp_path / "hub", folder, "someone/new", commit)
    cached(tmp_path / "hub", old, "someone/old", commit)
    assert mk.load_model("someone/new").revision == commit
    assert mk.load_model("someone/old", revision=commit).revision == commit
    monkeypatch.setattr(hub, "PUBLISHED", {("someone/old", commit): "0" * 64})
    with pytest.raises(ValueError, match="not the published file"):
        mk.load_model("someone/old")
    digest = data.sha256(old / "diffusion_pytorch_model.bin")
    monkeypatch.setattr(hub, "PUBLISHED", {("someone/old", commit): digest})
    assert "published SHA-256" in repr(mk.load_model("someone/old"))


@pytest.mark.long
def test_importing_the_package_imports_no_diffusers() -> None:
    names = "'diffusers', 'huggingface_hub', 'matplotlib', 'sklearn'"
    code = f"import sys, mathkit; print([m for m in ({names}) if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

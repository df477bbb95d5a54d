"""Train the built-in networks from scratch: the factor reader, then ALICE.

Every loop resumes: batch i depends on (seed, i) alone, and weights, moments and average are
stored together in runs/NAME/state.pt, so an interrupted run continues where it stopped.
"""

from __future__ import annotations

import argparse
import io
import math
import pathlib
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mathkit import data, scores
from mathkit.diffusion.hub import model_files
from mathkit.diffusion.load import load_model
from mathkit.diffusion.model import linear_schedule
from mathkit.show import puppets
from mathkit.show.puppets import STRANGER
from mathkit.show.reader import Reader
from studies.runner import processes

RUNS = pathlib.Path("runs")
STATE, BEGUN = "state.pt", "begun_from.txt"
TIMESTEPS = 1000
UNET = dict(
    sample_size=64,
    in_channels=3,
    out_channels=3,
    layers_per_block=1,
    block_out_channels=(32, 64, 128, 128),
    down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
    norm_num_groups=16,
    attention_head_dim=32,
)
PATIENTS = {
    "alice": UNET,
    "understudy": UNET | {"block_out_channels": (16, 32, 64, 80), "attention_head_dim": 16},
}
TRAINING_STEPS = {"reader": 1500, "alice": 9000, "understudy": 4000}
SIMPLE = ("understudy",)  # trained on the simple show: four moving factors, no Stranger


def fit(
    net: nn.Module,
    loss: Callable[[nn.Module, int, torch.Generator], Tensor],
    name: str,
    steps: int,
    rate: float,
    average: float = 0.999,
    every: int = 100,
) -> nn.Module:
    """Minimise loss(net, batch number, generator) with AdamW; return the net's running average.

    The rate warms up over 200 steps and falls along a cosine to rate / 20 at `steps`. The state is
    stored every `every` steps in runs/name/state.pt and picked up from there. Under torchrun each
    of the processes takes its own batches and the gradients are averaged. The average's memory
    grows with the step, at most `average`; the weights at the start are the first it has seen.
    """
    from tqdm.auto import tqdm

    rank, world = processes()
    path = RUNS / name / STATE
    mean = AveragedModel(net, multi_avg_fn=_growing(average)).requires_grad_(False)
    mean.update_parameters(net)
    adam = torch.optim.AdamW(
        net.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    done, seen = _resume(path, net, mean, adam), 0.0
    if rank == 0 and done < steps:
        data.claim(path.parent)
    shared = _shared(net) if world > 1 else net
    bar = tqdm(
        range(done, steps), name, initial=done, total=steps, mininterval=10, disable=rank > 0
    )
    for step in bar:
        for group in adam.param_groups:
            group["lr"] = learning_rate(step, steps, rate)
        batch = step * world + rank
        value = loss(shared, batch, torch.Generator().manual_seed(1_000_003 * (batch + 1)))
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        mean.update_parameters(net)
        seen = value.item() if step == done else 0.98 * seen + 0.02 * value.item()
        if rank == 0 and ((step + 1) % every == 0 or step + 1 == steps):
            bar.set_postfix(loss=f"{seen:.4f}", refresh=False)
            _store(path, net, mean, adam, step + 1, steps)
    return mean.module


def _growing(most: float) -> Callable[[Any, Any, Any], None]:
    """How `AveragedModel` takes in the n-th weights after the first: memory n / (n + 9)."""

    def take(slow: Any, fast: Any, n: Any) -> None:
        get_ema_multi_avg_fn(min(most, int(n) / (int(n) + 9)))(slow, fast, n)

    return take


def _shared(net: nn.Module) -> nn.Module:
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    return DistributedDataParallel(net)


def learning_rate(step: int, steps: int, rate: float, warm: int = 200) -> float:
    """rate * min(1, (step + 1) / warm) * c, where the cosine c falls from 1 to 1/20 at `steps`.

    Of the step alone, so that a run goes on as if undisturbed, and to other `steps` as well. No
    scheduler of torch says this: SequentialLR would hold the cosine back until the warm-up is over.
    """
    wave = 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
    return rate * min(1.0, (step + 1) / warm) * (0.05 + 0.95 * wave)


def _store(
    path: pathlib.Path,
    net: nn.Module,
    mean: AveragedModel,
    adam: torch.optim.Optimizer,
    step: int,
    of: int,
) -> None:
    state = {"net": net.state_dict(), "mean": mean.module.state_dict(), "adam": adam.state_dict()}
    buffer = io.BytesIO()
    torch.save(state | {"step": step, "of": of}, buffer)
    data.store(path, buffer.getvalue())


def _resume(
    path: pathlib.Path, net: nn.Module, mean: AveragedModel, adam: torch.optim.Optimizer
) -> int:
    """The steps done by the run stored at `path`, whose state is taken up; 0 where there is none.

    Raises ValueError for a file that holds no state of this network.
    """
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location=next(net.parameters()).device)
        net.load_state_dict(state["net"])
        mean.module.load_state_dict(state["mean"])
        adam.load_state_dict(state["adam"])
        done = int(state["step"])
    except (KeyError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} holds no run of this network: remove it to train anew ({error})"
        ) from None
    mean.n_averaged.fill_(done + 1)
    return done


def show(step: int, batch: int, stream: int, simple: bool = False) -> Tensor:
    """The factors of training batch `step`: fresh puppets for ever, from seeds of 2**31 upwards.

    (torch takes the low 32 bits of a seed; seeds below are for tests and measurements.)
    """
    draw = puppets.sample_simple if simple else puppets.sample_factors
    return draw(batch, 2**31 + stream * 2**28 + step)


def reader_loss(net: nn.Module, step: int, draw: torch.Generator, batch: int = 96) -> Tensor:
    """Squared error of the continuous factors, cross-entropy of the Stranger, his side and height
    where he is present; half the batch has him so that rare frames are learnt as well."""
    q = show(step, batch, stream=0)
    q[::2, STRANGER] = (torch.rand(len(q[::2]), generator=draw) < 0.7).float()
    images = spoil(puppets.render(q), draw).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        z = net(images)
    z = z.float()
    present = q[:, STRANGER, None]
    nuisance = (present * (z - q)[:, STRANGER + 1 :]).square().mean()
    presence = F.binary_cross_entropy_with_logits(z[:, STRANGER], q[:, STRANGER])
    return (z - q)[:, :STRANGER].square().mean() + 0.1 * presence + 0.3 * nuisance


def spoil(images: Tensor, draw: torch.Generator) -> Tensor:
    """Noise, blur, small colour shifts, smooth diffusion-like errors, each on part of a batch."""
    n = len(images)

    def chance(p: float) -> Tensor:
        return (torch.rand(n, 1, 1, 1, generator=draw) < p).float()

    def amount(high: float) -> Tensor:
        return high * torch.rand(n, 1, 1, 1, generator=draw)

    noise = torch.randn(images.shape, generator=draw)
    coarse = F.interpolate(
        torch.randn(n, 3, 16, 16, generator=draw), scale_factor=4.0, mode="bilinear"
    )
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    mix = chance(0.3) * amount(1.0)
    out = images + mix * (blurred - images)
    out = out + chance(0.3) * amount(0.06) * torch.randn(n, 3, 1, 1, generator=draw)
    out = out + chance(0.5) * amount(0.15) * noise + chance(0.3) * amount(0.10) * coarse
    return out.clamp(-1, 1)


class DenoiserLoss:
    """Mean |v - v_hat|^2 over a batch of noised frames at stratified uniform t, for `fit`.

    v = (sqrt(abar) x_t - m) / sqrt(1 - abar). m stands for x_0: the posterior mean of x_0 given
    x_t over the `recent` newest frames of the show, x_0 itself among them. Frames are independent,
    so m has the expectation of x_0 at every x_t and, where x_t leaves many of them possible, far
    less variance. In terms of x_0 the weight is 1 / (1 - abar): never small, so the posterior mean
    (and with it the Jacobian) is learnt at high noise too, where a loss in e forgives its errors.
    Memory: 49 kB a frame. Source: 2302.00670 (stable target field), 2202.00512 (v).
    """

    def __init__(self, simple: bool = False, batch: int = 8, recent: int = 2048) -> None:
        self.simple, self.batch, self.stride = simple, batch, processes()[1]
        self._kept: list[int | None] = [None] * max(1, recent // batch)
        self._frames = self._squares = torch.empty(0)

    def __call__(self, net: nn.Module, step: int, draw: torch.Generator) -> Tensor:
        device = next(net.parameters()).device
        x0, frames = self._recent(step, device)
        noise = torch.randn(x0.shape, generator=draw).to(device)
        strata = torch.arange(self.batch) + torch.rand(1, generator=draw)
        t = (strata * (TIMESTEPS / self.batch)).long()
        abar = linear_schedule(TIMESTEPS)[t].float().to(device)[:, None]
        xt = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
        logs = abar.sqrt() * (xt @ frames.T) - 0.5 * abar * self._squares.flatten()
        mean = torch.softmax(logs / (1 - abar), 1) @ frames
        target = (abar.sqrt() * xt - mean) / (1 - abar).sqrt()
        images = xt.view(self.batch, 3, 64, 64)
        if device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            found = net(images, t.to(device)).sample
        return (found.float().flatten(1) - target).square().mean()

    def _recent(self, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The frames of this step and those of the newest steps, as rows."""
        count = len(self._kept)
        for s in range(step - self.stride * (count - 1), step + 1, self.stride):
            slot = s // self.stride % count
            if self._kept[slot] != s:
                q = show(s, self.batch, stream=1, simple=self.simple).to(device)
                x0 = puppets.render(q).flatten(1)
                if not len(self._frames):
                    self._frames = torch.zeros(count, *x0.shape, device=device)
                    self._squares = torch.zeros(count, self.batch, device=device)
                self._frames[slot], self._squares[slot] = x0, x0.square().sum(1)
                self._kept[slot] = s
        return self._frames[step // self.stride % count], self._frames.flatten(0, 1)


def _channels_last(net: Any) -> nn.Module:
    return net.to(memory_format=torch.channels_last)


def make_reader() -> nn.Module:
    """A fresh factor reader, seeded."""
    torch.manual_seed(0)
    return _channels_last(Reader())


def make_unet(name: str = "alice") -> nn.Module:
    """A fresh U-Net of that patient's shape, seeded."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return _channels_last(UNet2DModel(**PATIENTS[name]))


def reader_metrics(net: nn.Module, n: int = 5000) -> dict[str, object]:
    """The reader's card on n clean frames it has never seen: R^2 a factor, Stranger accuracy."""
    q = puppets.sample_factors(n, seed=5_000_051)
    with torch.no_grad():
        z = torch.cat([net(puppets.render(part)) for part in q.split(250)])
    wrong = (z - q)[:, :STRANGER].square().mean(0) / q[:, :STRANGER].var(0)
    right = ((z[:, STRANGER] > 0) == (q[:, STRANGER] > 0.5)).sum()
    return {
        "bar": "each R2 at least .98, Stranger read right at least .999",
        "frames": n,
        "R2": dict(zip(puppets.CONTINUOUS, (1 - wrong).tolist(), strict=True)),
        "R2 worst": float(1 - wrong.max()),
        "Stranger read right": scores.in_words(int(right), n),
    }


def begin(net: nn.Module, name: str, folder: str) -> None:
    """Give `net` the weights of a folder, and note which in runs/NAME for the manifest.

    Raises ValueError where runs/NAME holds a run that was begun otherwise.
    """
    files = model_files(folder)
    note, digest = RUNS / name / BEGUN, data.sha256(files.weights)[:16]
    begun = f"{folder} (SHA-256 {digest}...)\n"
    if (note.parent / STATE).exists() and not (note.exists() and note.read_text() == begun):
        raise ValueError(
            f"{note.parent} holds another run: remove it to begin one from {folder}, or leave out "
            "--from to continue it"
        )
    try:
        net.load_state_dict(load_model(folder, device="cpu").unet.state_dict())
    except RuntimeError as error:
        raise ValueError(f"{files.weights} is no network like {name}'s: {error}") from None
    data.store(note, begun.encode())


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `python -m studies patient [reader|alice|understudy]`; all if none is named.

    A run in runs/ is continued; --from begins a new one, ALICE's if none is named, with the weights
    of a folder.
    """
    parser = argparse.ArgumentParser(prog="python -m studies patient", description=__doc__)
    names = ("reader", *PATIENTS)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)}; all if none is given")
    parser.add_argument("--steps", type=int, help="of the run as a whole, earlier ones counted in")
    parser.add_argument("--from", dest="start", help="a folder with trained weights to begin with")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in names]:
        parser.error(f"nobody is called {unknown[0]!r}; there are: {', '.join(names)}")
    args.names = args.names or (("alice",) if args.start else names)
    if args.start and (len(args.names) != 1 or "reader" in args.names):
        raise SystemExit("--from begins one patient: `patient alice --from data/alice`")
    if "reader" in args.names:
        fit(make_reader(), reader_loss, "reader", args.steps or TRAINING_STEPS["reader"], 2e-3)
    for name in args.names:
        if name != "reader":
            net, rate = make_unet(name), 8e-4
            if args.start:
                begin(net, name, args.start)
            elif not (RUNS / name / STATE).exists():
                (RUNS / name / BEGUN).unlink(missing_ok=True)
            if (RUNS / name / BEGUN).exists():
                rate /= 2
            loss = DenoiserLoss(simple=name in SIMPLE)
            fit(net, loss, name, args.steps or TRAINING_STEPS[name], rate)

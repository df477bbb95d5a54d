"""ALICE in a page beside ALICE in torch: CPU milliseconds of a call, one core each.

python tests/bench_laboratory.py              eight rounds of ten calls
python tests/bench_laboratory.py --rounds 20  on a busy machine

The two take turns, so that both meet the same neighbours; the smallest of the rounds counts. The
page's time is that of its process, as the browser tells it, and so includes the JavaScript around
the kernel, the copies and the compiler's threads; it comes in hundredths of a second, so few calls
tell little. Then the seconds that waking her takes, and the memory in use, weights included.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from laboratory import Page, laboratory, parts

import mathkit as mk

T = 500
# what stands ready in the page, and what is asked of it
PAGE = {
    "U-Net": ("null", "her.predict(x, t)"),
    "encoder": ("null", "her.linearised('h', x, t)"),
    "push": ("globalThis.A = her.linearised('h', x, t)", "A.push(x)"),
    "pull": ("globalThis.A = her.linearised('h', x, t)", "A.pull(A.value)"),
    "push of the mean": ("globalThis.A = her.linearised('mean', x, t)", "A.push(x)"),
    "pull of the mean": ("globalThis.A = her.linearised('mean', x, t)", "A.pull(x)"),
}


def in_torch(x: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """The same in torch, without gradients where none are asked for."""
    p = mk.load_model("alice", device="cpu")
    f, mean = mk.encoder(p, T), mk.posterior_mean(p, T)
    A, M, h = mk.jacobian(f, x), mk.jacobian(mean, x), f(x)
    return {
        "U-Net": lambda: p.unet(x, T),
        "encoder": lambda: f(x),
        "push": lambda: A.push(x),
        "pull": lambda: A.pull(h),
        "push of the mean": lambda: M.push(x),
        "pull of the mean": lambda: M.pull(x),
    }


def processor_time(page: Page) -> float:
    """Seconds that the processes of the pages have computed."""
    session = page.tab.context.browser.new_browser_cdp_session()
    told = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    return sum(process["cpuTime"] for process in told if process["type"] == "renderer")


def timed(now: Callable[[], float], work: Callable[[], Any], calls: int) -> float:
    """Milliseconds a call."""
    before = now()
    work()
    return (now() - before) * 1e3 / calls


def rounds(page: Page, x: torch.Tensor, count: int, calls: int) -> dict[str, list[float]]:
    """For each job the least milliseconds in torch and in the page."""
    best = {name: [math.inf, math.inf] for name in PAGE}
    page("globalThis.x = x; globalThis.t = t; return null", x=x.flatten(), t=T)
    jobs = in_torch(x)
    for _ in range(count + 1):  # the first round warms up
        for name, job in jobs.items():
            ready, call = PAGE[name]
            page(f"{ready}; return null")
            loop = f"for (let i = 0; i < {calls}; i++) {call}; return null"
            theirs = timed(time.process_time, partial(repeat, job, calls), calls)
            ours = timed(partial(processor_time, page), partial(page, loop), calls)
            best[name] = [min(best[name][0], theirs), min(best[name][1], ours)]
    return best


def repeat(job: Callable[[], Any], calls: int) -> None:
    for _ in range(calls):
        job()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--calls", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, laboratory(Path(folder)) as page, torch.no_grad():
        page("globalThis.stored = parts; return null", parts=parts())
        wake = "globalThis.her = await wake(stored); return null"
        waking = timed(lambda: processor_time(page), lambda: page(wake), 1) / 1e3
        weights = page("her.used() / 1e6")
        best = rounds(page, torch.randn(1, 3, 64, 64), given.rounds, given.calls)
        print(f"{'CPU ms':18}{'torch':>8}{'page':>8}{'ratio':>8}")
        for name, (theirs, ours) in best.items():
            print(f"{name:18}{theirs:8.1f}{ours:8.1f}{ours / theirs:8.2f}")
        print(f"waking {waking:.2f} s, weights {weights:.0f} MB, at most {page(PEAK):.0f} MB")


PEAK = """
globalThis.A = her.linearised("mean", x, t);
A.push(x);
A.pull(x);
return her.used() / 1e6;
"""

if __name__ == "__main__":
    main()

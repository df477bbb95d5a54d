"""The pentagon as a GIF by matplotlib alone: reads the arrays of `make clips NAME=10`.

python examples/matplotlib_pentagon.py _build/clips/10_superposition.npz pentagon.gif
"""

import sys

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.animation import FuncAnimation, PillowWriter

CYCLE = ("#D55E00", "#0072B2", "#009E73", "#8C3B6F", "#26262B")


def film(source, target, every=4):
    """Write the arrows of `source` (W: frames, 2 neurons, 5 features) as an animated picture."""
    saved = np.load(source)
    W, step = saved["W"][::every], saved["step"][::every]
    fig, ax = plt.subplots(figsize=(4, 4), dpi=100)
    reach = 1.2 * np.hypot(*W.transpose(1, 0, 2)).max()
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.axis("off")
    zero = np.zeros(W.shape[2])
    arrows = ax.quiver(zero, zero, *W[0], angles="xy", scale_units="xy", scale=1, color=CYCLE)

    def draw(i):
        arrows.set_UVC(*W[i])
        ax.set_title(f"step {step[i]:,}", fontsize=14)

    FuncAnimation(fig, draw, frames=len(W)).save(target, writer=PillowWriter(fps=15))
    plt.close(fig)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    film(*sys.argv[1:])

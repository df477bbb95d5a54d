"""The ellipse of J^T J in manim: reads the arrays of `make clips NAME=06`, needs no mathkit.

manim 0.22 wants an environment of its own: its pictures break with Pillow 13, which mathkit's
tested versions contain, and on Linux it needs system packages.

    sudo apt install libpango1.0-dev libcairo2-dev pkg-config     # Linux only
    python -m venv manim-env && manim-env/bin/pip install "manim==0.22.0" "pillow<12"
    manim-env/bin/manim -qm examples/manim_ellipse.py Ellipse

`Text` alone is used, so no LaTeX is needed. Another file: CLIP=path/to.npz before the command.
"""

import os

import numpy as np
from manim import (
    BOLD,
    DOWN,
    LEFT,
    RIGHT,
    TAU,
    UP,
    Arrow,
    Circle,
    Create,
    FadeIn,
    GrowArrow,
    ImageMobject,
    Scene,
    Text,
    ValueTracker,
    VGroup,
    always_redraw,
    linear,
)  # fmt: skip

PAPER, INK, ACCENT, BLUE = "#FBF9F4", "#26262B", "#D55E00", "#0072B2"
RADIUS = 1.6
saved = np.load(os.environ.get("CLIP", "_build/clips/06_the_jacobian.npz"))
M, U, S, V, faces = (saved[name] for name in ("M", "U", "S", "V", "faces"))


class Ellipse(Scene):
    def construct(self):
        self.camera.background_color = PAPER
        left, right = LEFT * 3.4, RIGHT * 3.4
        title = Text(str(saved["title"]), color=INK, font_size=36, weight=BOLD).to_edge(UP)
        circle, ring = (Circle(RADIUS, color=INK).move_to(at) for at in (left, right))
        words = [name.split("_")[0] for name in saved["dials"].tolist()]
        names = VGroup(*(Text(word, color=BLUE, font_size=24).next_to(circle, at, 0.15)
                         for word, at in zip(words, (RIGHT, UP), strict=True)))  # fmt: skip
        angle = ValueTracker(0.0)

        def hand():
            v = np.array([np.cos(angle.get_value()), np.sin(angle.get_value()), 0])
            return Arrow(left, left + RADIUS * v, buff=0, color=ACCENT)

        def puppet():
            k = round(angle.get_value() / TAU * len(faces)) % len(faces)
            return ImageMobject(faces[k]).set_height(1.6).move_to(left)

        self.play(FadeIn(title), Create(circle), FadeIn(names), run_time=1)
        self.add(always_redraw(puppet), always_redraw(hand))
        self.play(angle.animate.set_value(TAU), run_time=4, rate_func=linear)
        self.play(Create(ring), run_time=1)
        longest = TAU + np.arctan2(V[0, 1], V[0, 0])
        pressed = ring.animate.apply_function(lambda p: right + np.append(M @ (p - right)[:2], 0))
        self.play(pressed, angle.animate.set_value(longest), run_time=3)
        tip = right + RADIUS * np.append(S[0] * U[0], 0)  # U has a direction a row
        note = Text(f"s1 / s2 = {S[0] / S[1]:.1f}", color=ACCENT, font_size=32).to_edge(DOWN)
        self.play(GrowArrow(Arrow(right, tip, buff=0, color=ACCENT)), FadeIn(note))
        self.wait(1)

"""What each chapter shows, as arrays and as frames: `film.clip(scenes.ellipse().frames(), ...)`.

`BY_CHAPTER` has the scene of each chapter by its number.
"""

from collections.abc import Callable

from mathkit.draw.scenes.learned import eigenfaces, pentagon
from mathkit.draw.scenes.plane import ellipse, power_method, rotate_stretch_rotate
from mathkit.draw.scenes.scene import Scene
from mathkit.draw.scenes.shown import count, failing_basis, push_and_pull, pushed_curve, two_rulers
from mathkit.draw.scenes.treated import coarse_to_fine, cure, snow, switched_off

BY_CHAPTER: dict[str, Callable[[], Scene]] = {
    "01": count,
    "02": pushed_curve,
    "03": push_and_pull,
    "04": snow,
    "05": failing_basis,
    "06": ellipse,
    "07": two_rulers,
    "08": switched_off,
    "09": eigenfaces,
    "10": pentagon,
    "11": power_method,
    "12": rotate_stretch_rotate,
    "13": cure,
    "14": coarse_to_fine,
}

__all__ = [
    "BY_CHAPTER",
    "Scene",
    "coarse_to_fine",
    "count",
    "cure",
    "eigenfaces",
    "ellipse",
    "failing_basis",
    "pentagon",
    "power_method",
    "push_and_pull",
    "pushed_curve",
    "rotate_stretch_rotate",
    "snow",
    "switched_off",
    "two_rulers",
]

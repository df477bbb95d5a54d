"""mathkit: build a linear map, look at its singular vectors."""

from mathkit import scores as scores
from mathkit.checks import check as check

"""Diffusion models: how they are loaded, sampled, inverted, looked into and edited."""

from mathkit.diffusion import gaussian as gaussian
from mathkit.diffusion import levels as levels

"""mathkit: build a linear map, look at its singular vectors.

The house, floor by floor; each imports only from those above it.

arguments, data, scores, exercises
            what an argument must be; the shipped files; intervals, distances; `check` of an answer
linear      LinearMap, Jacobians, the adjoint, power method, Lanczos and svd; subspaces, metrics
diffusion   models and how they are loaded; sampling; the encoder x_t -> h; edits of x_t and of h
show        the puppet show: renderer, exact posterior, reader of factors
chapters    what the chapters teach: eigenfaces, superposition, neurons, treatment, galaxies, ...
draw        style, pictures, curves, widgets, tables; scenes, film and the look of a tape
tools       of your own model, by `python -m mathkit`: `atlas`, `report`, `edit`

Beside it in a clone, not installed with it: `studies`, how our own tables and weights were made.
"""

from mathkit import scores as scores
from mathkit.data import info
from mathkit.diffusion.denoiser import denoiser
from mathkit.diffusion.edits import guide, inject, move, normalise, shoot
from mathkit.diffusion.encoder import encoder
from mathkit.diffusion.load import load_model
from mathkit.diffusion.sampling import denoise, invert, posterior_mean, sample, timesteps
from mathkit.exercises import check
from mathkit.linear.adjoint import check_adjoint
from mathkit.linear.arrays import mask, matrix
from mathkit.linear.jacobian import jacobian
from mathkit.linear.linear_map import LinearMap
from mathkit.linear.power_method import power_iteration, subspace_iteration
from mathkit.linear.subspaces import project_out, transport
from mathkit.linear.svd import svd
from mathkit.show import puppets as puppets
from mathkit.show.reader import read_factors

__all__ = [
    "LinearMap",
    "check",
    "check_adjoint",
    "denoise",
    "denoiser",
    "encoder",
    "guide",
    "info",
    "inject",
    "invert",
    "jacobian",
    "load_model",
    "mask",
    "matrix",
    "move",
    "normalise",
    "posterior_mean",
    "power_iteration",
    "project_out",
    "puppets",
    "read_factors",
    "sample",
    "scores",
    "shoot",
    "subspace_iteration",
    "svd",
    "timesteps",
    "transport",
]

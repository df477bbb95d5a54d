"""mathkit: build a linear map, look at its singular vectors."""

from mathkit import puppets as puppets
from mathkit import scores as scores
from mathkit.checks import check as check
from mathkit.diffusion import denoise as denoise
from mathkit.diffusion import invert as invert
from mathkit.diffusion import posterior_mean as posterior_mean
from mathkit.diffusion import sample as sample
from mathkit.diffusion import timesteps as timesteps
from mathkit.factors import read_factors as read_factors
from mathkit.grassmann import project_out as project_out
from mathkit.hspace import encoder as encoder
from mathkit.hspace import guide as guide
from mathkit.hspace import inject as inject
from mathkit.hspace import move as move
from mathkit.loading import load_model as load_model
from mathkit.maps import LinearMap as LinearMap
from mathkit.maps import check_adjoint as check_adjoint
from mathkit.maps import jacobian as jacobian
from mathkit.maps import mask as mask
from mathkit.maps import matrix as matrix
from mathkit.spectral import power_iteration as power_iteration
from mathkit.spectral import subspace_iteration as subspace_iteration
from mathkit.spectral import svd as svd
from mathkit.weights import info as info

"""Linear maps that push and pull, and their singular vectors."""

from mathkit.linear import metric as metric
from mathkit.linear import spectrum as spectrum
from mathkit.linear import subspaces as subspaces

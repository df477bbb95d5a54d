"""The lost puppet show: a known chart of a known manifold, and the truth about it."""

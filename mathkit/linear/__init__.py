"""Linear maps that push and pull, and their singular vectors."""

"""How the stored tables and the shipped weights were made.

Run from a clone by `python -m studies COMMAND`; it is not installed with mathkit.
"""

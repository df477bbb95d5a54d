"""The laboratory: ALICE and the search for her singular directions, alive in a page from disk.

JavaScript, HTML and CSS as they are read, and `pack`, which makes pages of them.
"""

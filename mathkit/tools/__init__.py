"""For your own model, by command: an atlas of local bases, the papers' experiments as a page."""

"""For your own model, by command: an atlas of bases, the papers' experiments, an edited photo."""

"""Models, data sets and checkpoints."""

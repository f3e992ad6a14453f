"""Load models, data sets and checkpoints."""

"""Measurements on honest models, whose gradients are correct: the numbers behind thresholds."""

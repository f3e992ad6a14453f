"""Attacks: each a function ``attack(model, images, labels, *, threat, steps, generator) -> images``."""

"""Randomized defenses: how often they answer an image right."""

"""Randomized defenses: how often they classify an image correctly, and their random numbers."""

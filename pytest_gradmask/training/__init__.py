"""Recipes and the loop that trains the fixtures."""

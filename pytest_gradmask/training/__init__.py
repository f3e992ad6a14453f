"""Train the fixtures: recipes, the training loop, and the measurement of trained models."""

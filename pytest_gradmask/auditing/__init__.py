"""One audit, from images and labels to a verdict."""

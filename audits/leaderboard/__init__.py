"""Audited checkpoints, one JSON file each in ``entries/``, and a page that lists them."""

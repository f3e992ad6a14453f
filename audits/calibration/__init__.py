"""Proof by simulation that verdicts are calibrated; `python -m audits.calibration` writes docs/calibration.md."""

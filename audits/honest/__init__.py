"""Honest models: classifiers that hide nothing, to measure how often a finding is a false alarm."""

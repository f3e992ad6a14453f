"""Honest models: networks that hide no gradient, made by a script, to measure how often an audit says that they do."""

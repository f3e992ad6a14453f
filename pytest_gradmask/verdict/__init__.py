"""The decision rule, its statistics and its results: pure functions and plain data, no torch."""

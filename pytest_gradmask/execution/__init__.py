"""Where and how attacks run: engines, cache, batches, random generators, isolation."""

"""BPDA: which parts of a defense to bypass, and what stands in for them on the backward pass."""

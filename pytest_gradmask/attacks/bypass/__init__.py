"""BPDA: which parts of a defense to bypass, and which approximation replaces them on the backward pass."""

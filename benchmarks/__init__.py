"""The cost of this package, measured in one run beside that of the alternative.

The scripts use the public names of `pytest_gradmask`, and internals only through `pytest_gradmask.auditing.research`.
"""

"""The paper and the known defenses as test cases.

They use the public names of `pytest_gradmask`, and internals only through `pytest_gradmask.auditing.research`.
"""

"""The paper and the known defenses as test cases, through the public API only."""

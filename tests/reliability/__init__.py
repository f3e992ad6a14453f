"""The reliability of the project: measured by its tests, written to docs/reliability.md."""

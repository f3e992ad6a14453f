"""How reliable the project is: measured by its tests, written to docs/reliability.md."""

"""How well audits judge randomized defenses: intervals are compared with many samples, and attacks with each other."""

"""Transfer matrices: an attack crafted on each of some models, tested on all."""

"""Transfer matrices: an attack is crafted on each of several models and tested on all of them."""

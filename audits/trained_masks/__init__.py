"""Masks that training makes: the front end of Boytsov et al. (arXiv:2402.17018), trained as they train it."""

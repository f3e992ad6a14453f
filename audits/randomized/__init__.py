"""How well randomized defenses are judged: intervals against many votes, attacks on ensembles against each other."""

"""Known defenses around the trained backbones, each with its story and the attack of its literature."""

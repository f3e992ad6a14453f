"""Known defenses around the trained backbones, each with its history and the attack of its literature."""

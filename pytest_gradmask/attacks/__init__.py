"""Attacks: functions ``attack(model, images, labels, *, threat, generator) -> images``, see `protocol.AttackFunction`.

Most also take a number of ``steps`` and other settings as keyword arguments.
"""

"""Certified classifiers of digits: a floor of robust accuracy that no attack may cross and no mask can lift."""

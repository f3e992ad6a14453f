"""The binarization test: is an attack strong enough for this defense?"""

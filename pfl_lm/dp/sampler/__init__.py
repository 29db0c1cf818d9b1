"""Exact samplers of discrete noise, and the randomness that feeds them."""

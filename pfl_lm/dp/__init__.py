"""Differential privacy: what is promised, what it costs, and the noise that pays for it."""

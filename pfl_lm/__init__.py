"""Federated training of a keyboard's language model under user-level differential privacy."""

__version__ = "0.1.0"

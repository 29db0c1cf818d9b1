"""Layers of the models in C."""

"""Checks of a policy's and a run's privacy accounting."""

"""Attacks that measure what a run leaks."""

"""Invented users, whose language is known exactly."""

"""Doors to other libraries: their data in, ours out, their runtime for a sum, their models here."""

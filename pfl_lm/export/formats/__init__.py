"""The formats of phones, one module each."""

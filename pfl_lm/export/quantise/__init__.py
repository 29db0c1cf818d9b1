"""Low-bit weights of exported models."""

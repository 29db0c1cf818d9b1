"""A server that attacks the device that calls it, and says whether the device let itself be cheated."""

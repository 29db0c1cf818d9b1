"""A server that attacks the device that calls it, and says whether it cheated the device."""

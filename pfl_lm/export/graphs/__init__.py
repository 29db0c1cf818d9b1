"""The graphs that an exported bundle holds."""

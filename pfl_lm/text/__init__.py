"""Text of people: tokenizers, populations, readers."""

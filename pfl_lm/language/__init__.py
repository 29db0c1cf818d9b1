"""The language: words, the users who type them, and the models that predict them."""

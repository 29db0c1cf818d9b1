"""What may stand in a recipe, read from the dataclasses and their docstrings alone."""

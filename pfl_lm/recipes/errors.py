"""What is raised about a recipe that cannot be used."""

from __future__ import annotations


class RecipeError(ValueError):
    """A recipe that cannot be used; each problem names the file, the key and the remedy.

    Attributes:
        problems: one line each, in the order of the file.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

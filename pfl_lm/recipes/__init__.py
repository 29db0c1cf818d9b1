"""Strict TOML, and plain values that a program wrote, → frozen dataclasses.

Every table of a recipe becomes the dataclass of the part that it configures; unknown keys, wrong
types and impossible values are refused with the file, the key, and what was expected. One reading
names everything that is wrong with a file.

Recipes that install with the package are found by name: ``chat_partial``, ``privacy/keyboard_150``.
"""

from pfl_lm.recipes.errors import RecipeError
from pfl_lm.recipes.names import SHIPPED, find, names_recipe, shipped, shipped_folder
from pfl_lm.recipes.plain import from_plain
from pfl_lm.recipes.reader import RENAMED, RENAMED_VALUES, load
from pfl_lm.recipes.settings import parse_settings

__all__ = [
    "RENAMED",
    "RENAMED_VALUES",
    "SHIPPED",
    "RecipeError",
    "find",
    "from_plain",
    "load",
    "names_recipe",
    "parse_settings",
    "shipped",
    "shipped_folder",
]

"""Where a recipe is: a file, or the name of one that ships with the package."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from pfl_lm.recipes.errors import RecipeError
from pfl_lm.recipes.settings import Typed

# The folders of the shipped recipes; ``setup.py`` maps them into the wheel.
SHIPPED = ("tokenizers", "simulations", "privacy")


@dataclass(frozen=True)
class Source:
    """The file of a recipe, and the folder that the paths in it start from."""

    path: Path
    folder: Path

    @classmethod
    def of(cls, path: Path, kind: type) -> Source:
        """Find a recipe; a shipped one is read as if it lay in the current folder."""
        file = find(path, kind)
        if Path(path).is_file() or file not in shipped().values():
            return cls(file, file.parent)
        return cls(file, Path.cwd() / file.parent.relative_to(shipped_folder()))

    def resolve(self, value: str, recipe: bool) -> Path:
        """Resolve a path that the recipe states; ``recipe``: it may name another recipe.

        A path that was typed on the command line starts from the current folder.
        """
        folder = Path.cwd() if isinstance(value, Typed) else self.folder
        target = (folder / value).resolve()
        return (recipe and _named_recipe(Path(value), target)) or target


def find(path: Path, kind: type | None = None) -> Path:
    """Return the file of a recipe: ``path`` itself, or the shipped recipe that it names.

    ``privacy/keyboard_150`` is the file ``privacy/keyboard_150.toml`` where there is one, and
    otherwise the recipe that ships with the package. A path that ends in ``.toml`` is a file and
    nothing else: a policy of one's own that is missing is never replaced by a shipped one.

    Args:
        kind: the dataclass of the recipe that is looked for; None: any.

    Raises:
        RecipeError: there is neither; the message names the nearest shipped recipe of that kind.
    """
    path = Path(path)
    if path.is_file():
        return path
    named = _named_recipe(path, path)
    if named is None:
        raise RecipeError(f"{path}: no such recipe file{_nearest(path, kind)}")
    return named


def names_recipe(path: Path) -> bool:
    """Say whether ``path`` is a recipe file or names a shipped recipe."""
    return Path(path).is_file() or _named_recipe(Path(path), Path(path)) is not None


def shipped_folder() -> Path:
    """Return the folder of the shipped recipes: in a wheel the package's own, else the clone."""
    package = Path(__file__).resolve().parents[1]
    return inside if (inside := package / "shipped").is_dir() else package.parent


def shipped() -> dict[str, Path]:
    """Return every recipe that installs with the package, by names such as ``privacy/keyboard``."""
    root = shipped_folder()
    files = [file for folder in SHIPPED for file in sorted((root / folder).rglob("*.toml"))]
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in files}


def _named_recipe(name: Path, path: Path) -> Path | None:
    """Return the file that a name without ``.toml`` means: the user's own, else a shipped one."""
    if path.exists() or name.suffix == ".toml":
        return None
    own = path.with_name(f"{path.name}.toml")
    if own.is_file():
        return own
    ends = f"/{name.as_posix()}"
    return next((file for known, file in shipped().items() if f"/{known}".endswith(ends)), None)


def _nearest(path: Path, kind: type | None) -> str:
    stems = {Path(name).name: name for name, file in shipped().items() if _is_of(kind, file)}
    close = difflib.get_close_matches(path.name.removesuffix(".toml"), stems, n=1)
    if close:
        return f"; pfl-lm ships with {stems[close[0]]}, which is found by that name"
    return "; `pfl-lm recipes` lists those that ship with it"


def _is_of(kind: type | None, file: Path) -> bool:
    """Say whether a shipped recipe is of a kind: it states no other keys."""
    if kind is None:
        return True
    known = {entry.name for entry in fields(kind)}
    return tomllib.loads(file.read_text(encoding="utf-8")).keys() <= known

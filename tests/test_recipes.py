from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from pfl_lm.recipes import RecipeError, load


@dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b"]
    size: int = 3

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size = {self.size} must not be negative")


@dataclass(frozen=True)
class Outer:
    rate: float
    name: str = "x"
    source: Path | None = None
    parts: tuple[str, ...] = ()
    inner: Inner | None = None
    inners: Inner = field(default_factory=lambda: Inner("a"))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_becomes_its_dataclass(tmp_path):
    text = 'rate = 2\nsource = "../data/x"\nparts = ["p", "q"]\n[inner]\nkind = "b"\nsize = 7\n'
    outer = load(Outer, written(tmp_path, text))
    assert outer == Outer(
        2.0, source=(tmp_path / "../data/x").resolve(), parts=("p", "q"), inner=Inner("b", 7)
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rate = 1.0\nrat = 2", r"rat is not a key .*did you mean 'rate'"),
        ("rate = 1.0\nzzz = 2", r"zzz is not a key .*expected one of rate, name"),
        ("name = 'x'", r"rate is missing \(expected a number\)"),
        ("rate = 'fast'", r"rate = 'fast' is refused: expected a number"),
        ("rate = 1.0\nparts = 'p'", r"parts = 'p' is refused: expected a list of text"),
        ("rate = 1.0\n[inner]\nkind = 'c'", r"inner.kind = 'c' is refused: .*'a', 'b'"),
        ("rate = 1.0\n[inner]\nkind = 'a'\nsize = 1.5", r"inner.size = 1.5 .*whole number"),
        ("rate = 1.0\n[inner]\nkind = 'a'\nsize = -1", r"\[inner\] size = -1 must not be"),
        ("rate = 1.0\ninner = 3", r"inner = 3 is refused: expected a table with kind, size"),
        ("rate = ", r"not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(tmp_path, text, told):
    path = written(tmp_path, text)
    with pytest.raises(RecipeError, match=told) as caught:
        load(Outer, path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        load(Outer, tmp_path / "absent.toml")

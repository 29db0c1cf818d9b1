"""The kinds of recipe, by the names that `explain` and `schema` take."""

from __future__ import annotations

import difflib

KINDS = {
    "scenario": ("pfl_lm.run.scenario", "Scenario"),
    "policy": ("pfl_lm.dp.policy", "Policy"),
    "tokenizer": ("pfl_lm.text.tokenizer_recipe", "TokenizerRecipe"),
    "fleet": ("pfl_lm.phones.fleet", "Fleet"),
    "pretraining": ("pfl_lm.run.pretrain_recipe", "Pretraining"),
}


def kind_of(name: str) -> type:
    """Return the dataclass of a kind of recipe.

    Raises:
        ValueError: there is no such kind.
    """
    from importlib import import_module

    if name not in KINDS:
        close = difflib.get_close_matches(name, KINDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(KINDS)}"
        raise ValueError(f"{name!r} is no kind of recipe; {hint}")
    module, dataclass = KINDS[name]
    kind: type = getattr(import_module(module), dataclass)
    return kind

"""A person who writes some of a vocabulary's languages: the others' words are left out.

The model gives those words no chance, and every other id its share of what is left; text that has
them is read as with a vocabulary that lacks them. ``keyboard/page/tokenizer.js`` and
``predictor.js`` do the same in a browser.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from pfl_lm.evaluation.interfaces import HeldOut, HeldOutAsTyped
from pfl_lm.models.file import Model
from pfl_lm.text.tokenizer import Tokenizer

NEVER = -1e9  # score of a word that is left out


def without_left_out(model: Model, tokenizer: Tokenizer) -> Model:
    """Return a model that never predicts the words that a tokenizer leaves out.

    Args:
        tokenizer: as ``Tokenizer.of_languages`` returns it.
    """
    if not len(tokenizer.left_out):
        return model
    spec = replace(model.spec, output_bias=True)
    none = torch.zeros(spec.vocabulary_size)
    bias = model.parameters.get("output_bias", none).detach().clone()
    bias[torch.from_numpy(tokenizer.left_out)] = NEVER
    return Model(spec, dict(model.parameters) | {"output_bias": bias}, model.origin)


@dataclass(frozen=True)
class ReadAs:
    """People whose text a tokenizer reads that leaves words out, as a ``HeldOutAsTyped``."""

    people: HeldOut
    tokenizer: Tokenizer

    def users(self, split: str) -> int:
        """Return how many there are."""
        return self.people.users(split)

    def tokens(self, split: str, user: int) -> np.ndarray:
        """Return the ids of a user's text, ``<unk>`` for each word left out."""
        tokens = self.people.tokens(split, user)
        return self._read_as[tokens].astype(tokens.dtype)

    @cached_property
    def _read_as(self) -> np.ndarray:
        """The id that each id is read as, int64[V]."""
        ids = np.arange(self.tokenizer.vocabulary_size)
        ids[self.tokenizer.left_out] = self.tokenizer.unk_id
        return ids

    def typed(self, split: str, user: int) -> np.ndarray | None:
        """As ``HeldOutAsTyped.typed``."""
        people = self.people
        return people.typed(split, user) if isinstance(people, HeldOutAsTyped) else None

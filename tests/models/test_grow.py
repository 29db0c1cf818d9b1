"""A grown model says of old words what it said before, and splits what it said of unknown ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pfl_lm.models.file import Model
from pfl_lm.models.grow import grow
from pfl_lm.models.models import ModelSpec, hidden_of, initialise, roles, scores

UNK = 1


def model_of(**changes: object) -> Model:
    stated = {
        "kind": "cifg_lstm", "vocabulary_size": 30, "embedding_dim": 8, "hidden_dim": 12,
    }  # fmt: skip
    spec = ModelSpec(**(stated | changes))  # type: ignore[arg-type]
    parameters = initialise(spec, 3)
    parameters["embedding"] *= 20  # so that contexts matter
    return Model(spec, parameters, {"kind": "public", "tokenizer_digest": "old"})


# Ids 0 … 24 stay, two words are new, the last five move up.
IDS = np.array([*range(25), -1, -1, *range(25, 30)])
SHARES = np.zeros(len(IDS))
SHARES[25], SHARES[26] = 0.3, 0.1


def probabilities(model: Model, words: list[int]) -> np.ndarray:
    vectors = hidden_of(model.spec, model.parameters, np.array([words]))[0]
    return scores(model.spec, model.parameters, vectors).double().softmax(-1).numpy()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": False},
        {"kind": "transformer", "heads": 2, "feedforward_dim": 16, "hidden_dim": 0},
    ],
    ids=["tied", "untied", "transformer"],
)
def test_old_words_keep_their_probability_and_unknown_ones_share_theirs(changes: dict) -> None:
    model = model_of(**changes)
    grown = grow(model, IDS, SHARES, UNK, {"tokenizer_digest": "new"})
    words = [2, 7, UNK, 9, 28]
    before = probabilities(model, words)
    after = probabilities(grown, [int(np.flatnonzero(word == IDS)[0]) for word in words])
    kept = [i for i, old in enumerate(IDS) if old >= 0 and old != UNK]
    np.testing.assert_allclose(after[:, kept], before[:, IDS[kept]], rtol=2e-5)
    np.testing.assert_allclose(after[:, 25], 0.3 * before[:, UNK], rtol=2e-5)
    np.testing.assert_allclose(after[:, 26], 0.1 * before[:, UNK], rtol=2e-5)
    np.testing.assert_allclose(after[:, UNK], 0.6 * before[:, UNK], rtol=2e-5)


def test_it_is_a_whole_model_of_the_new_size_and_the_old_one_is_untouched() -> None:
    model = model_of()
    before = {name: value.clone() for name, value in model.parameters.items()}
    grown = grow(model, IDS, SHARES, UNK, {"tokenizer_digest": "new"})
    assert {n: tuple(v.shape) for n, v in grown.parameters.items()} == {
        name: role.shape for name, role in roles(grown.spec).items()
    }
    assert grown.origin == {"kind": "public", "tokenizer_digest": "new"}
    assert all(torch.equal(model.parameters[name], value) for name, value in before.items())


def test_a_model_without_an_output_bias_is_refused() -> None:
    with pytest.raises(ValueError, match="output_bias"):
        grow(model_of(output_bias=False), IDS, SHARES, UNK, {})


@pytest.mark.parametrize("change", [(25, 0.0), (25, 0.95), (3, 0.1)])
def test_shares_that_are_none_are_refused(change: tuple[int, float]) -> None:
    shares = SHARES.copy()
    shares[change[0]] = change[1]
    with pytest.raises(ValueError, match="shares"):
        grow(model_of(), IDS, shares, UNK, {})

"""Intervals over users: right width, paired, and honest about no difference."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_lm.report.comparison.bootstrap import FIGURES, Difference, difference
from pfl_lm.report.comparison.compare import shown, verdict

PERPLEXITY, TOP3, *_ = FIGURES


def users(seed: int, count: int, rate: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    words = random.integers(20, 200, size=count).astype(float)
    return {
        "words": words,
        "top3": random.binomial(words.astype(int), rate).astype(float),
        "predictions": words,
        "nats": words * random.normal(4.0, 0.3, size=count),
    }


def test_a_model_beside_itself_is_no_difference():
    sums = users(0, 50, 0.3)
    for figure in (PERPLEXITY, TOP3):
        found = difference(figure, sums, sums)
        assert (found.value, found.low, found.high) == (0, 0, 0)
        assert not found.is_clear


def test_the_interval_is_that_of_the_delta_method():
    one, two = users(1, 400, 0.30), users(1, 400, 0.30)
    two = two | {"top3": np.minimum(two["words"], two["top3"] + one["words"] * 0.02)}
    random = np.random.default_rng(2)
    two["top3"] = two["top3"] + random.normal(0, 3, size=400)
    found = difference(TOP3, one, two)
    words = one["words"]
    own = (two["top3"] - one["top3"]) - found.value * words  # each user's part of the ratio
    error = own.std(ddof=1) * np.sqrt(400) / words.sum()
    assert found.value == pytest.approx(((two["top3"] - one["top3"]).sum()) / words.sum())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.12)
    assert found.low < found.value < found.high


def test_pairing_takes_out_what_users_share():
    one = users(3, 200, 0.3)
    two = one | {"nats": one["nats"] * 0.99}
    found = difference(PERPLEXITY, one, two)
    apart = users(4, 200, 0.3)
    unpaired = difference(PERPLEXITY, one, apart)
    assert found.is_clear
    assert found.is_better
    assert found.high - found.low < 0.1 * (unpaired.high - unpaired.low)
    assert found.value == pytest.approx(
        np.exp(-0.01 * one["nats"].sum() / one["words"].sum()) - 1, rel=1e-6
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("nats", [np.inf, np.nan, 1e6])
def test_a_model_that_diverged_is_not_compared(nats):
    one = users(3, 200, 0.3)
    lost = one | {"nats": np.full(200, nats) * one["predictions"]}
    for pair in ((one, lost), (lost, one), (lost, lost)):
        found = difference(PERPLEXITY, *pair)
        assert not found.is_clear
        assert verdict(found, True, None).startswith("perplexity: not compared")
        assert shown(PERPLEXITY, found.value) == shown(PERPLEXITY, found.high) == "–"
    assert difference(TOP3, one, lost).value == 0


def test_about_one_in_twenty_of_equal_models_is_called_different():
    clear = sum(
        difference(TOP3, users(seed, 60, 0.3), users(seed, 60, 0.3) | _again(seed)).is_clear
        for seed in range(60)
    )
    assert clear <= 12  # 3 expected; above 12 with a chance of 1e-5


def _again(seed: int) -> dict[str, np.ndarray]:
    words = users(seed, 60, 0.3)["words"].astype(int)
    return {"top3": np.random.default_rng(10_000 + seed).binomial(words, 0.3).astype(float)}


@pytest.mark.parametrize(
    ("value", "low", "high", "alike", "luck", "sentence"),
    [
        (0.1, 0.08, 0.12, False, None, "perplexity: 10.0% higher, worse"),
        (-0.1, -0.12, -0.08, False, None, "perplexity: 10.0% lower, better"),
        (-0.1, -0.12, -0.08, False, 0.02, "perplexity: 10.0% lower, better"),
        (0.01, -0.01, 0.03, False, None, "perplexity: no difference"),
        (0.01, 0.005, 0.02, False, 0.015, "perplexity: no difference (another seed alone"),
        (0.01, 0.005, 0.02, True, 0.01, "perplexity: no difference (only the seed differs"),
    ],
)
def test_verdicts(value, low, high, alike, luck, sentence):
    found = Difference(PERPLEXITY, 100.0, 100 * (1 + value), value, low, high)
    assert verdict(found, alike, luck).startswith(sentence)

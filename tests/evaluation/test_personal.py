"""Adapting on the phone: measured on text it has not seen, and no model but its own changes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.evaluation.personal import personal_gain
from pfl_lm.models.models import LoraSpec, ModelSpec, initialise
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.text.synthetic.population import SyntheticPopulation, synthetic_tokenizer

TOKENIZER = synthetic_tokenizer(300)
SPEC = ModelSpec("cifg_lstm", 300, 8, hidden_dim=8, lora=LoraSpec(2), side_branch=4)
LOCAL = LocalTraining(0.3, batch_size=4, epochs=4, gradient_clip=1.0, window=8)


class OneTrack:
    """Users who say their two words for ever."""

    def users(self, split: str) -> int:
        return 4

    def tokens(self, split: str, user: int) -> np.ndarray:
        words = [2, 20 + user, 60 + user, 3]
        return np.asarray(words * (25 if user < 3 else 2), dtype=np.int32)


@pytest.mark.parametrize("dense", ["biases", "lora", "side_branch"])
def test_who_repeats_himself_gains(dense: str) -> None:
    parameters = initialise(SPEC, 0, TOKENIZER.unigram)
    before = {name: value.clone() for name, value in parameters.items()}
    plan = PayloadPlan(rows="none", dense=dense)
    found = personal_gain(SPEC, parameters, OneTrack(), "test", TOKENIZER, plan, LOCAL)
    assert found.shared.users == found.personal.users == 3  # one wrote too little
    assert len(found.nats) == 3
    assert found.personal.perplexity < found.shared.perplexity
    assert found.hurt == 0
    assert all((parameters[name] == before[name]).all() for name in parameters)


def test_a_rate_that_is_too_high_hurts_and_is_said_to() -> None:
    people = SyntheticPopulation({"test": 6}, 300, tokens_per_user=200)
    parameters = initialise(SPEC, 0, TOKENIZER.unigram)
    wild = LocalTraining(30.0, batch_size=4, epochs=4, window=8)
    plan = PayloadPlan(rows="none", dense="lora")
    found = personal_gain(SPEC, parameters, people, "test", TOKENIZER, plan, wild)
    assert found.hurt >= 0.2
    assert found.personal.perplexity > found.shared.perplexity


def test_the_gain_is_that_of_the_figures() -> None:
    people = SyntheticPopulation({"test": 8}, 300, tokens_per_user=200)
    parameters = initialise(SPEC, 0, TOKENIZER.unigram)
    plan = PayloadPlan(rows="none", dense="biases")
    found = personal_gain(SPEC, parameters, people, "test", TOKENIZER, plan, LOCAL)
    assert found.coordinates == 24
    sign = np.log(found.shared.perplexity) - np.log(found.personal.perplexity)
    assert np.sign(sign) == np.sign(found.nats.mean()) or abs(sign) < 0.01
    json.dumps(found.personal.as_dict())

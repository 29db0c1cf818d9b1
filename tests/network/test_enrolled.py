"""The devices that are enrolled are invited, however many train users the scenario's store has."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.cli.device_setups import played_setups
from pfl_lm.network import server
from pfl_lm.network.hostile.run import prepare
from pfl_lm.network.hostile.watch import Patience
from pfl_lm.network.identity import DeviceKey
from pfl_lm.run.scenario import PopulationConfig
from pfl_lm.run.setup import open_run
from pfl_lm.text.population import USER_DIGEST_BYTES
from pfl_lm.text.population_write import StoreWriter, UserText
from pfl_lm.text.synthetic.population import SyntheticPopulation, synthetic_tokenizer

TRAIN, VALIDATION, TEST = range(3)


@pytest.fixture(scope="module")
def held_out_alone(small, tmp_path_factory, quick):
    """A scenario whose store has nobody to train on, and six devices in a cohort."""
    folder = tmp_path_factory.mktemp("store")
    people = SyntheticPopulation({"train": 8}, 300, 40, seed=1)
    synthetic_tokenizer(300).save(folder / "tokenizer")
    (folder / "text").mkdir()
    with StoreWriter(folder / "text", synthetic_tokenizer(300)) as writer:
        for user in range(8):
            words = people.tokens("train", user).astype(np.uint16).tobytes()
            split = TEST if user % 2 else VALIDATION
            writer.add(UserText(user.to_bytes(USER_DIGEST_BYTES, "big"), split, b"", [words]))
    writer.finish("invented users", {"inputs": []})
    store = PopulationConfig("store", path=folder / "text")
    return small(population=store, tokenizer=folder / "tokenizer")


def test_a_store_of_held_out_text_alone_is_served(
    held_out_alone, keys_of, tmp_path, new_watcher, monkeypatch
):
    async def no_rounds(context, recorder, store, state, serving):
        return state

    monkeypatch.setattr(server, "_run", no_rounds)
    serving = server.Serving(keys_of(6), "127.0.0.1:1", trial=True, ledgers=tmp_path / "ledgers")
    monkeypatch.setattr(server.Serving, "require_free_addresses", lambda self: None)
    folder = server.serve(held_out_alone, tmp_path / "run", serving, new_watcher())
    population = folder.manifest()["population"]
    assert population["users"]["train"] == 0
    assert population["cohort_rule"]["population"] == 6
    assert folder.evaluation_path.is_file()


def test_too_few_are_enrolled(held_out_alone):
    with pytest.raises(ValueError, match="cohort = 6 exceeds the 5 users who may be invited"):
        open_run(held_out_alone, enrolled=5)
    with pytest.raises(ValueError, match="cohort = 6 exceeds the 0 users who may be invited"):
        open_run(held_out_alone)


def test_a_hostile_server_needs_no_train_users_either(held_out_alone, keys_of):
    attack = prepare(held_out_alone, keys_of(6), "127.0.0.1:0", Patience(1.0, 1.0), trial=True)
    assert attack.task.enrolled == 6


THREE = """
rounds = 2
cohort = 6
clip_norm = 0.5
training = { learning_rate = 1.0, batch_size = 4, window = 8 }
population = { kind = "synthetic", users = 3, tokens_per_user = 40 }
model = { kind = "cifg_lstm", vocabulary_size = 300, embedding_dim = 8, hidden_dim = 8 }
"""


def test_a_device_plays_its_user_of_a_population_below_a_cohort(tmp_path, keys_of):
    (tmp_path / "three.toml").write_text(THREE)
    files = keys_of(6).folder / "devices"
    keys = [DeviceKey.read(files / f"{number:05d}.json") for number in (2, 3)]
    (setup,) = played_setups(tmp_path / "three.toml", keys[:1])
    assert len(setup.tokens) > 0
    with pytest.raises(ValueError, match="device 3 has no user: the population has 3"):
        played_setups(tmp_path / "three.toml", keys[1:])

"""Questions for words over the network: as in the simulator, and refused where they are doctored."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.dp.ledger import verify
from pfl_lm.network.device import participant
from pfl_lm.network.identity import DeviceKey, ServerKeys
from pfl_lm.network.question_server import serve_words
from pfl_lm.network.rpc_client import RpcClient
from pfl_lm.network.server import Serving
from pfl_lm.network.task_config import DeviceSetup
from pfl_lm.network.transport import channel_to
from pfl_lm.queries.ask import QuerySession
from pfl_lm.queries.discover import WordsQuestion, find_words, first_question
from pfl_lm.run.progress import ProgressListener
from pfl_lm.text.synthetic.population import synthetic_tokenizer
from tests.network.conftest import PATIENT, RESTLESS, Trial, free_port
from tests.queries.conftest import policy_of

DEVICES = 6
TYPED = ["moarvm", "rakudo"]


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "words.tsv"
    path.write_text("word\tcount\n" + "".join(f"{w}\t9\n" for w in [*TYPED, "nobody"]))
    return path


class Asking(Trial):
    """One question over the network; threads play its server and devices."""

    def __init__(self, folder, keys, question, policy, is_trial=True, limits=PATIENT):
        self.folder, self.keys, self.question, self.policy = folder, keys, question, policy
        self.is_trial, self.limits, self.port = is_trial, limits, free_port()
        self.errors, self.threads = [], []
        self.ledgers = folder.parent / "ledgers"
        self.tokenizer = synthetic_tokenizer(300)

    def setup(self, number: int) -> DeviceSetup:
        words = TYPED[: 1 + number % 2]
        return DeviceSetup(
            self.tokenizer, self.policy, None, trial=True, unknown_words=words
        )

    def device(self, number, sending=lambda round, kind: None):
        client = self.client(number)
        return participant(client, self.key(number), self.setup(number), sending)

    def serve(self, **options):
        serving = self.serving(**options.pop("serving", {}))
        return serve_words(
            self.question, self.tokenizer, self.policy, self.folder, serving,
            ProgressListener(), **options,
        )

    def released(self):
        return [e["released"] for e in verify(self.folder / "ledger.jsonl") if e["kind"] == "round"]


def test_one(keys_of, listed, tmp_path):
    policy = policy_of(epsilon=50, users=DEVICES, delta=0.1, min_dim=64)
    run = Asking(tmp_path / "w", keys_of(DEVICES), WordsQuestion(entries=2, candidates_from=listed, seed=7), policy)
    run.start_devices()
    found = run.serve()
    run.join()
    print(found, run.released())

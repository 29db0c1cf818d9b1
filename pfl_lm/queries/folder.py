"""The folder of a question: what was asked, what it cost, what came out, and the seed on the way.

manifest.json   what was asked, of whom, under which policy, and the name of the result's file
ledger.jsonl    what it cost, and at its end the digest of the result (see pfl_lm.dp.ledger)
ledger.debited  while the question runs: the line of its last round (dp.population_ledger)
words.tsv       the result, written last; of a comparison of models, comparison.json
budget.json     what the people asked had spent of their one budget when the question ended
noise.secret    while the question runs: the seed of all its randomness (mode 0600)
rounds.sqlite   in place of the seed where devices call over the network (see pfl_lm.network.store)

    killed before            what --resume does
    the manifest             nothing: no device was asked; remove the folder
    a round is recorded      asks it again with the same noise; nothing was released
    the end is recorded      repeats the recorded rounds to the byte, which the ledger counts once
    the seed is erased       erases it, and ledger.debited; the question is finished
"""

from __future__ import annotations

import json
import math
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfl_lm.dp.ledger import Ledger
from pfl_lm.dp.population_ledger import erase_debited
from pfl_lm.files import sha256_of, sweep, write_atomically
from pfl_lm.queries.ask import QuerySession
from pfl_lm.queries.people import AskedPeople
from pfl_lm.run.folder import BUDGET_FILE, digest_of, read_json, write_json
from pfl_lm.run.manifest_file import first_difference, unreviewed
from pfl_lm.run.progress import ProgressListener
from pfl_lm.version import code_digest

_SECRET_BITS = 256


@dataclass(frozen=True)
class QuestionFolder:
    """The paths of one question.

    Attributes:
        path: of the folder.
        result: name of the file that holds what came out.
    """

    path: Path
    result: str

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @property
    def ledger_path(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def result_path(self) -> Path:
        return self.path / self.result

    @property
    def secret_path(self) -> Path:
        return self.path / "noise.secret"

    def open(
        self,
        asked: dict[str, Any],
        session: QuerySession,
        people: AskedPeople,
        seed: int | None,
        resume: bool,
        listener: ProgressListener,
    ) -> tuple[Ledger, QuerySession]:
        """Begin the question, or go on with one that was interrupted.

        Args:
            asked: its manifest, as ``readable`` returns it.
            people: whose ledger is debited first.
            seed: None: a secret one.

        Returns:
            The question's ledger, open, and the session with its seed.

        Raises:
            BudgetSpent: the people asked cannot pay the question.
            ValueError: the folder is not free; to resume: it holds another question or none, is
                finished, or has lost its seed; it, or the people's ledger, is an older copy.
        """
        secret = secrets.randbits(_SECRET_BITS) if seed is None else seed
        ledger = self._open(asked, session, people, resume, listener, secret)
        try:
            return ledger, replace(session, seed=self._seed())
        except BaseException:
            ledger.close()
            raise

    def open_served(
        self,
        asked: dict[str, Any],
        session: QuerySession,
        people: AskedPeople,
        resume: bool,
        listener: ProgressListener,
    ) -> Ledger:
        """Begin a question to devices elsewhere, or go on: as ``open``, without a seed."""
        return self._open(asked, session, people, resume, listener, None)

    def _open(
        self,
        asked: dict[str, Any],
        session: QuerySession,
        people: AskedPeople,
        resume: bool,
        listener: ProgressListener,
        seed: int | None,
    ) -> Ledger:
        ledger = self._resume(asked) if resume else self._begin(asked, session, people, seed)
        try:
            listener.say(people.take_up(ledger, session))
        except BaseException:
            ledger.close()
            raise
        return ledger

    def _begin(
        self, asked: dict[str, Any], session: QuerySession, people: AskedPeople, seed: int | None
    ) -> Ledger:
        """Write the seed where there is one, ledger and manifest, in this order."""
        if self.path.exists() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} is not empty; choose another folder, or --resume")
        whose = people.begin(session)  # it may refuse: before the folder is made
        self.path.mkdir(parents=True, exist_ok=True)
        if seed is not None:
            with write_atomically(self.secret_path, mode=0o600) as temporary:
                temporary.write_text(f"{seed}\n", encoding="ascii")
        genesis = {
            "run": self.path.name,
            "policy_digest": digest_of(asked["policy"]),
            "manifest_digest": digest_of(asked),
            "statements": asked["statements"],
            **whose,
        }
        if groups := asked["asked"].get("groups"):
            genesis["groups"] = groups  # whose devices fill cells of their own
        ledger = Ledger.create(self.ledger_path, genesis)
        write_json(self.manifest_path, asked)
        return ledger

    def _resume(self, asked: dict[str, Any]) -> Ledger:
        """Open the ledger of an interrupted question again."""
        if not self.manifest_path.is_file():
            raise ValueError(
                f"{self.path} holds no question that was begun; if one was killed as it began, "
                "remove the folder and ask again"
            )
        written = read_json(self.manifest_path)
        then, now = ({**m, "policy": unreviewed(m.get("policy"))} for m in (written, asked))
        if then != now:
            what = first_difference(then, now, "manifest")
            raise ValueError(
                f"{self.path} was begun with another question, policy, population or code "
                f"({what}); resume with the same, or ask again in another folder"
            )
        ledger = Ledger.open(self.ledger_path)
        try:
            if ledger.entries()[0].get("manifest_digest") != digest_of(written):
                raise ValueError(f"{self.manifest_path} is not the one that the ledger began with")
            if any(entry["kind"] == "end" for entry in ledger.entries()):
                self.secret_path.unlink(missing_ok=True)
                erase_debited(ledger)
                raise ValueError(f"{self.path} is finished; what came out is in {self.result}")
            sweep(self.path, self.result)
            sweep(self.path, BUDGET_FILE)
            return ledger
        except BaseException:
            ledger.close()
            raise

    def _seed(self) -> int:
        try:
            return int(self.secret_path.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            raise ValueError(
                f"{self.secret_path} is missing or damaged: the question cannot be asked again "
                "with the same noise, and other noise would cost more than the policy pays; what "
                "was spent stays spent: ask other users, in another folder"
            ) from None

    def finish(self, ledger: Ledger, people: AskedPeople) -> None:
        """Record that the question is over, with the digest of its result; erase the seed."""
        if (spent := people.spent()) is not None:
            write_json(self.path / BUDGET_FILE, spent)
        rounds = sum(entry["kind"] == "round" for entry in ledger.entries())
        end = {"rounds": rounds, "result": sha256_of(self.result_path), "code": code_digest()}
        ledger.record({"kind": "end", **end})
        self.secret_path.unlink(missing_ok=True)


def readable(content: dict[str, Any]) -> dict[str, Any]:
    """Return what a reader of the JSON file finds: lists for tuples, null for infinity."""
    back: dict[str, Any] = json.loads(json.dumps(_finite(content)))
    return back


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

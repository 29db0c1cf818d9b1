"""Questions and training on the same people draw on one budget, whatever happens in between."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pfl_lm.audit.ledger.population import COSTS, DEBITED, ONE_BUDGET, TOLD, TOTAL
from pfl_lm.audit.question.artifacts import QuestionArtifacts
from pfl_lm.audit.question.ledger import audit_question_ledger
from pfl_lm.cli import app
from pfl_lm.dp.guarantee import guarantee
from pfl_lm.dp.ledger import Ledger, LedgerError, verify
from pfl_lm.dp.policy import Policy
from pfl_lm.dp.population_ledger import BudgetSpent, PopulationAccount, PopulationLedger
from pfl_lm.dp.population_spent import PopulationSpent, population_spent
from pfl_lm.queries import discover as module
from pfl_lm.queries.discover import WordsQuestion, discover
from pfl_lm.queries.people import account_of
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer
from tests.audit.doctoring import chained
from tests.queries.conftest import policy_of

OPEN = WordsQuestion(domain="open", entries=4, cells=80_000)


@pytest.fixture
def closed(word_list: Path) -> WordsQuestion:
    return WordsQuestion(entries=4, candidates_from=word_list)


@pytest.fixture
def ask(closed: WordsQuestion, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path):
    """A function that asks the users for words, under an ε of 2 unless another is stated."""

    def put(
        name: str,
        policy: Policy | None = None,
        question: WordsQuestion = closed,
        people: PopulationStore = store,
        **how,
    ):
        policy = policy or policy_of(2.0)
        return discover(question, people, tokenizer, policy, tmp_path / name, **how)

    return put


def ledger_of(store: PopulationStore) -> Path:
    account = account_of(store, "train", None, None)
    assert account is not None
    return account.path


def spent(store: PopulationStore) -> PopulationSpent:
    return population_spent(ledger_of(store))


def state(store: PopulationStore, epsilon: float, delta: float = 1e-3) -> None:
    account = account_of(store, "train", None, None)
    assert account is not None
    with PopulationLedger.open(account) as ledger:
        ledger.state_total(epsilon, delta)


def train(store: PopulationStore, folder: Path, policy: Policy) -> None:
    """Record what a whole run under a policy records, over the same people."""
    account = account_of(store, "train", None, None)
    assert account is not None
    with PopulationLedger.open(account) as people:
        noise = guarantee(policy).noise_multiplier
        planned = [policy.event(noise, round=number) for number in range(policy.rounds)]
        people.check(policy, *planned)
        folder.mkdir()
        genesis = {"run": folder.name, "policy_digest": "ab", **people.reference()}
        with Ledger.create(folder / "ledger.jsonl", genesis) as ledger:
            people.take_up(ledger, policy)
            for event in planned:
                ledger.record_round(event.round, {"event": asdict(event)})


def test_a_question_is_debited_and_a_second_one_is_refused_before_it_is_asked(
    ask, store: PopulationStore, tmp_path: Path
) -> None:
    ask("one")
    told = spent(store)
    assert [(s.name, s.purpose, s.rounds) for s in told.spent_by] == [("one", "words", 1)]
    assert 1.9 < told.cost.epsilon <= told.total.epsilon == 2.0
    with pytest.raises(BudgetSpent) as refused:
        ask("two")
    assert not (tmp_path / "two").exists()
    assert "left; spent by one (words, 1 round, alone ε = " in str(refused.value)
    assert "--total" in str(refused.value)
    assert json.loads((tmp_path / "one" / "budget.json").read_text())["epsilon"] == (
        told.cost.epsilon
    )


def test_a_question_killed_at_its_very_end_keeps_neither_its_seed_nor_its_last_line(
    ask, tmp_path: Path
) -> None:
    code = os.fork()
    if not code:  # killed as it closes the people's ledger
        try:
            PopulationLedger.close = lambda ledger: os._exit(9)  # type: ignore[method-assign]
            ask("one")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(code, 0)[1]) == 9
    (tmp_path / "one" / "noise.secret").write_text("1\n")  # or a moment earlier
    assert (tmp_path / "one" / "ledger.debited").exists()
    with pytest.raises(ValueError, match="is finished"):
        ask("one", resume=True)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"budget.json", "ledger.jsonl", "manifest.json", "words.tsv"}


def test_every_path_to_a_store_leads_to_one_budget(
    ask, store: PopulationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("one")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "link").symlink_to(store.folder)
    linked = PopulationStore.open(elsewhere / "link")
    monkeypatch.chdir(store.folder)
    for same in (linked, PopulationStore.open(Path())):
        with pytest.raises(BudgetSpent):
            ask("two", people=same)
        shown = CliRunner().invoke(app, ["privacy", "population", str(same.folder)])
        assert "1 round" in shown.output
    assert [path.name for path in elsewhere.iterdir()] == ["link"]


def test_training_and_questions_share_a_stated_total(
    ask, store: PopulationStore, tmp_path: Path
) -> None:
    state(store, 4.0)
    ask("words", policy_of(0.5))  # its own small ε blocks nothing
    train(store, tmp_path / "run", policy_of(2.0, rounds=3, min_separation=2))
    told = spent(store)
    assert [s.purpose for s in told.spent_by] == ["words", "training"]
    assert max(s.epsilon for s in told.spent_by) < told.cost.epsilon
    assert told.cost.epsilon < sum(s.epsilon for s in told.spent_by)  # composed, not added up
    with pytest.raises(BudgetSpent, match=r"above their total of ε = 4\.000 at δ = 0\.001; of"):
        train(store, tmp_path / "again", policy_of(4.0))
    ask("more", policy_of(0.5))  # what fits is still asked
    with pytest.raises(BudgetSpent):
        ask("too much", policy_of(4.0))


def test_the_whole_question_is_compared_before_its_first_round(
    ask, store: PopulationStore, tmp_path: Path
) -> None:
    state(store, 7.9)
    with pytest.raises(BudgetSpent, match="3 rounds more"):
        ask("open", policy_of(8.0, rounds=3), OPEN)
    assert not (tmp_path / "open").exists()


@pytest.mark.parametrize("at", ["own ledger", "result", "end"])
def test_killed_anywhere_a_question_that_spends_all_goes_on(
    ask, store: PopulationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    with monkeypatch.context() as patched:
        if at == "own ledger":  # after the debit to these people, before the question's own
            patched.setattr(Ledger, "_append", _dying(Ledger._append))
        else:
            name = "write_words" if at == "result" else "QuestionFolder.finish"
            patched.setattr(f"{module.__name__}.{name}", _die)
        with pytest.raises(KeyboardInterrupt):
            ask("one")
    assert [e["kind"] for e in verify(ledger_of(store))] == ["genesis", "begin", "debit"]
    ask("one", resume=True)
    assert [e["kind"] for e in verify(ledger_of(store))] == ["genesis", "begin", "debit"]
    assert spent(store).cost.epsilon <= 2.0


def test_two_at_once_and_a_ledger_that_was_put_back(
    ask, store: PopulationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = account_of(store, "train", None, None)
    with PopulationLedger.open(account), pytest.raises(LedgerError, match="another process"):
        ask("one")
    assert not (tmp_path / "one").exists()
    state(store, 8.0)
    before = ledger_of(store).read_text()
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_words", _die)
        with pytest.raises(KeyboardInterrupt):
            ask("one")
    ledger_of(store).write_text(before)
    with pytest.raises(ValueError, match="older copy of it"):
        ask("one", resume=True)


def test_a_stated_seed_protects_nobody_and_spends_nothing(
    ask, closed: WordsQuestion, store: PopulationStore, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        ask(name, question=replace(closed, seed=7))
    assert not ledger_of(store).exists()
    assert not (tmp_path / "one" / "budget.json").exists()


def test_every_split_is_a_population_of_its_own(store: PopulationStore) -> None:
    names = {account_of(store, split, None, None).path for split in ("train", "validation")}
    assert len(names) == 2


def run(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (done.output, done.exception)
    return " ".join(done.output.split())


def refused(*words: str) -> str:
    return str(CliRunner().invoke(app, words).exception)


class TestVerbs:
    def test_a_total_is_stated_once(self, ask, store: PopulationStore) -> None:
        named = ("privacy", "population", str(store.folder))
        assert "not stated" in run(*named)
        assert "go together" in refused(*named, "--total", "4")
        shown = run(*named, "--total", "4", "--delta", "1e-3")
        assert "total ε = 4.000 at δ = 0.001" in shown
        assert "stated once" in refused(*named, "--total", "5", "--delta", "1e-3")
        ask("one")
        shown = run("privacy", "population", str(ledger_of(store).parent))
        assert "left ε = 2.0" in shown
        assert "by one (words, 1 round, alone ε = " in shown

    def test_a_later_total_never_raises_what_was_promised(
        self, ask, store: PopulationStore
    ) -> None:
        ask("one")
        named = ("privacy", "population", str(store.folder), "--delta", "1e-3", "--total")
        assert "break that promise" in refused(*named, "4")
        run(*named, "2")
        with pytest.raises(BudgetSpent):
            ask("two")

    def test_a_published_hash_shows_a_ledger_that_was_begun_again(
        self, ask, store: PopulationStore
    ) -> None:
        ask("one")
        named = ("privacy", "population", str(store.folder), "--head")
        head = spent(store).head
        run(*named, head)
        ledger_of(store).unlink()
        assert "there is no ledger" in refused(*named, head)
        state(store, 9.0)
        assert "cut short or replaced" in refused(*named, head)

    def test_check_says_which_policies_these_people_can_still_pay(
        self, ask, store: PopulationStore, tmp_path: Path
    ) -> None:
        state(store, 4.0)
        ask("one", policy_of(2.0))
        for name, epsilon in (("small", 0.5), ("large", 3.9)):
            (tmp_path / f"{name}.toml").write_text(
                f'unit = "user"\nneighboring = "zero_out"\nepsilon = {epsilon}\ndelta = 1e-3\n'
                "population = 300\nreport_goal = 300\nrounds = 1\n"
                'participation = { kind = "rotation", min_separation = 1 }\n'
                'noise = { at = "device", kind = "skellam", min_dim = 64 }\n'
            )
        ledgers = str(ledger_of(store).parent)
        assert "fits: all of small" in run(
            "check", str(tmp_path / "small.toml"), "--ledgers", ledgers
        )
        assert "too much: all of large" in run(
            "check", str(tmp_path / "large.toml"), "--ledgers", ledgers
        )
        by_device = (tmp_path / "small.toml").read_text().replace('"user"', '"device"')
        (tmp_path / "phones.toml").write_text(by_device)
        shown = " ".join(run("check", str(tmp_path / "phones.toml"), "--ledgers", ledgers).split())
        assert 'too much: phones: unit = "device": one has spent rounds of these people' in shown

    def test_nobody_can_pay_for_a_policy_without_noise(
        self, store: PopulationStore, tmp_path: Path
    ) -> None:
        """Neither where a total is stated nor before."""
        (tmp_path / "loud.toml").write_text(
            'unit = "user"\nneighboring = "zero_out"\nepsilon = inf\ndelta = 1e-3\n'
            "population = 300\nreport_goal = 300\nrounds = 1\n"
            'participation = { kind = "rotation", min_separation = 1 }\n'
            'noise = { at = "none", kind = "none" }\n'
        )
        folder = ledger_of(store).parent
        with PopulationLedger.open(PopulationAccount(store.digest_of("test"), folder)):
            pass
        check = ("check", str(tmp_path / "loud.toml"), "--ledgers", str(folder))
        assert "too much: loud adds no noise" in run(*check)
        state(store, 4.0)
        assert "too much: loud adds no noise" in run(*check)


class TestAudit:
    @pytest.fixture
    def asked(self, ask, store: PopulationStore, tmp_path: Path) -> Path:
        state(store, 4.0)
        ask("one")
        train(store, tmp_path / "run", policy_of(1.0, rounds=2))
        return tmp_path / "one"

    def findings(self, asked: Path, ledgers: Path | None) -> dict[str, bool | None]:
        part = audit_question_ledger(QuestionArtifacts.open(asked), ledgers)
        assert all(f.holds is not False for f in part.findings if f.name not in NAMES), part
        return {f.name: f.holds for f in part.findings if f.name in NAMES}

    def test_an_honest_question(self, asked: Path, store: PopulationStore) -> None:
        ledgers = ledger_of(store).parent
        assert self.findings(asked, ledgers) == dict.fromkeys(NAMES, True)
        assert self.findings(asked, None) == {ONE_BUDGET: None}
        shown = run("audit", str(asked), "--part", "ledger", "--ledgers", str(ledgers))
        assert "spent by one (words, 1 rounds), run (training, 2 rounds)" in shown
        assert "spent by one (words" in (asked / "audit.html").read_text()

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            (lambda e: e.pop(3), DEBITED),
            (lambda e: e[3]["event"].update(noise_multiplier=99.0), DEBITED),
            (lambda e: e[3].update(round=1), DEBITED),
            (lambda e: e.insert(4, {**e[3], "round": 1, "head": "ab" * 32}), DEBITED),
            (lambda e: e[1].update(epsilon=1.0), TOTAL),
            (lambda e: e.insert(2, {**e[1], "epsilon": 9.0}), TOTAL),
            (lambda e: e.append(e.pop(1)), TOTAL),  # a total above what was promised by then
            (lambda e: e.pop(4), TOTAL),  # a run that never began
            (lambda e: e[5]["event"].update(mechanism="magic"), TOTAL),
            (lambda e: e[5]["event"].update(noise_multiplier=0.01), TOTAL),
            (lambda e: e[5]["event"].pop("dim"), TOTAL),
            (lambda e: e[0].update(policy_digest="cd" * 32), ONE_BUDGET),
            (lambda e: e.clear(), ONE_BUDGET),
        ],
    )
    def test_a_doctored_ledger_of_these_people(
        self, asked: Path, store: PopulationStore, change, name: str
    ) -> None:
        path = ledger_of(store)
        entries = verify(path)
        own, head = entries[2]["run"], json.loads(path.read_text().splitlines()[1])["hash"]
        change(entries)
        path.write_text("".join(line + "\n" for line in chained(entries)))
        # One who rewrites the chain rewrites the question's first entry too; here its debits stay.
        lines = (asked / "ledger.jsonl").read_text()
        assert own
        if name != ONE_BUDGET:
            self._rechain(asked, path, lines, head)
        assert self.findings(asked, path.parent).get(name) is False

    def _rechain(self, asked: Path, people: Path, lines: str, head: str) -> None:
        """Let the question begin with a line of the doctored chain, whose debits name it again."""
        own = [json.loads(line)["entry"] for line in lines.splitlines()]
        first = json.loads(people.read_text().splitlines()[0])["hash"]
        old = [json.loads(line)["hash"] for line in lines.splitlines()]
        own[0]["population_head"] = first
        fresh = chained(own)
        (asked / "ledger.jsonl").write_text("".join(line + "\n" for line in fresh))
        renamed = dict(zip(old, (json.loads(line)["hash"] for line in fresh), strict=True))
        text = people.read_text()
        entries = [json.loads(line)["entry"] for line in text.splitlines()]
        for entry in entries:
            for field in ("run", "head", "previous"):
                entry.update({field: renamed[entry[field]]} if entry.get(field) in renamed else {})
        people.write_text("".join(line + "\n" for line in chained(entries)))

    def test_a_ledger_that_is_absent_or_an_older_copy(
        self, asked: Path, store: PopulationStore, tmp_path: Path
    ) -> None:
        assert self.findings(asked, tmp_path / "nowhere") == {ONE_BUDGET: False}
        path = ledger_of(store)
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
        assert self.findings(asked, path.parent) == {ONE_BUDGET: False}

    @pytest.mark.parametrize(
        "change", [{"epsilon": 0.5}, {"total_epsilon": 9.0}, {"head": "ab" * 32}, {"epsilon": "x"}]
    )
    def test_a_folder_that_tells_another_budget(
        self, asked: Path, store: PopulationStore, change: dict
    ) -> None:
        path = asked / "budget.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        assert self.findings(asked, ledger_of(store).parent)[TOLD] is False

    def test_an_edited_line(self, asked: Path, store: PopulationStore) -> None:
        path = ledger_of(store)
        path.write_text(path.read_text().replace('"epsilon":4.0', '"epsilon":9.0'))
        assert self.findings(asked, path.parent) == {ONE_BUDGET: False}

    def test_a_question_that_left_its_people_out(self, asked: Path, store: PopulationStore) -> None:
        shutil.rmtree(ledger_of(store).parent)
        own = [json.loads(line)["entry"] for line in (asked / "ledger.jsonl").open()]
        own[0].pop("population_head")
        (asked / "ledger.jsonl").write_text("".join(line + "\n" for line in chained(own)))
        assert self.findings(asked, None) == {ONE_BUDGET: None}


NAMES = (ONE_BUDGET, COSTS, DEBITED, TOTAL, TOLD)


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def _dying(append):
    def append_all_but_a_round(self: Ledger, line: dict) -> None:
        if line["entry"]["kind"] == "round":
            self.before_append(line)
            raise KeyboardInterrupt
        append(self, line)

    return append_all_but_a_round

"""One budget for one population: whatever the folder, what is spent adds up."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pfl_lm.audit.chain import read_chain
from pfl_lm.audit.ledger.population import _kept as audited_budget
from pfl_lm.audit.ledger.population import total_of as audited_total
from pfl_lm.dp.guarantee import guarantee
from pfl_lm.dp.ledger import Ledger, LedgerError, verify
from pfl_lm.dp.policy import Noise, Participation, Policy
from pfl_lm.dp.population_ledger import (
    BudgetSpent,
    PopulationAccount,
    PopulationLedger,
    check_spends_nothing,
)
from pfl_lm.dp.population_spent import population_spent, with_planned
from tests.audit.doctoring import chained

ROUNDS = 6
POLICY = Policy(
    unit="user",
    neighboring="zero_out",
    epsilon=2.0,
    delta=1e-6,
    population=1000,
    report_goal=100,
    rounds=ROUNDS,
    participation=Participation("rotation", 3),
    noise=Noise("device", "skellam"),
)


@pytest.fixture
def account(tmp_path) -> PopulationAccount:
    return PopulationAccount("ab" * 32, tmp_path / "ledgers")


class Run:
    """A run's ledger, as it is written while the population's is held."""

    def __init__(self, folder: Path, account: PopulationAccount, policy: Policy = POLICY) -> None:
        self.path, self.account, self.policy = folder / "ledger.jsonl", account, policy
        self.population = PopulationLedger.open(account)
        if self.path.exists():
            self.ledger = Ledger.open(self.path)
        else:
            folder.mkdir()
            genesis = {"run": folder.name, "policy_digest": "cd", "nonce": str(folder)}
            genesis["population_head"] = self.population.head
            self.ledger = Ledger.create(self.path, genesis)

    def __enter__(self) -> Run:
        self.population.take_up(self.ledger, self.policy)
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.close()
        self.population.close()

    def round(self, number: int, released: str = "") -> None:
        planned = self.policy.event(guarantee(self.policy).noise_multiplier, round=number)
        self.population.check(self.policy, planned)
        entry = {"event": asdict(planned), "released": released or f"{number}"}
        self.ledger.record_round(number, entry, again=True)


def rounds(folder: Path, account: PopulationAccount, numbers, policy: Policy = POLICY) -> None:
    with Run(folder, account, policy) as run:
        for number in numbers:
            run.round(number)


def debits(account: PopulationAccount) -> list[int]:
    return [entry["round"] for entry in verify(account.path) if entry["kind"] == "debit"]


def test_a_whole_run_fits_its_policys_budget_and_a_second_one_does_not(account, tmp_path):
    rounds(tmp_path / "one", account, range(ROUNDS))
    spent = population_spent(account.path)
    assert [(run.name, run.rounds) for run in spent.spent_by] == [("one", ROUNDS)]
    assert 1.9 < spent.cost.epsilon <= 2.0
    with pytest.raises(BudgetSpent, match="all runs and questions on them"):
        rounds(tmp_path / "two", account, [0])
    assert debits(account) == [*range(ROUNDS)]


def test_deleting_a_run_gives_nothing_back(account, tmp_path):
    rounds(tmp_path / "one", account, range(ROUNDS))
    shutil.rmtree(tmp_path / "one")
    with pytest.raises(BudgetSpent):
        rounds(tmp_path / "one", account, [0])


def test_two_half_runs_cost_what_a_user_in_both_has_spent(account, tmp_path):
    rounds(tmp_path / "one", account, range(3))  # one separation: each user once
    rounds(tmp_path / "two", account, range(3))  # numbered alike: the same users, once more
    spent = population_spent(account.path)
    assert spent.cost.participations == 2
    assert spent.cost.epsilon <= 2.0
    assert [run.epsilon for run in spent.spent_by] == [pytest.approx(spent.spent_by[0].epsilon)] * 2
    with pytest.raises(BudgetSpent):
        rounds(tmp_path / "three", account, [0])


@pytest.mark.parametrize("first", ["user", "device"])
def test_rounds_of_two_units_are_not_added_up(account, tmp_path, first):
    """A person with two devices is in more rounds per device than a policy per user counts."""
    account.folder.mkdir()
    with PopulationLedger.open(account) as ledger:
        ledger.state_total(100.0, 1e-6)
    one, other = (
        replace(POLICY, unit=unit) for unit in sorted(["user", "device"], reverse=first == "user")
    )
    rounds(tmp_path / "one", account, range(2), one)
    with pytest.raises(ValueError, match=f'one has spent .* under unit = "{first}"'):
        rounds(tmp_path / "two", account, [0], other)
    planned = [POLICY.event(5.0, round=0)]
    assert with_planned(account.path, other, planned).cost.epsilon == math.inf
    assert with_planned(account.path, one, planned).cost.epsilon < 100
    rounds(tmp_path / "one", account, [2], one)
    assert debits(account) == [0, 1, 2]


def test_the_audit_finds_rounds_of_two_units(account, tmp_path):
    rounds(tmp_path / "one", account, range(2))
    rounds(tmp_path / "two", account, range(2))
    assert audited_budget(read_chain(account.path)).holds
    entries = verify(account.path)
    begun = [entry for entry in entries if entry["kind"] == "begin"]
    assert [entry["unit"] for entry in begun] == ["user", "user"]
    begun[1]["unit"] = "device"
    account.path.write_text("".join(line + "\n" for line in chained(entries)))
    found = audited_budget(read_chain(account.path))
    assert found.holds is False
    assert "per device and per user" in found.text


def test_the_least_promise_of_all_runs_binds(account, tmp_path):
    rounds(tmp_path / "one", account, range(ROUNDS))
    generous = Policy(**{**vars(POLICY), "epsilon": 20.0, "delta": 1e-4})
    with pytest.raises(BudgetSpent, match=r"2\.000"):
        rounds(tmp_path / "two", account, range(ROUNDS), generous)


def test_a_policy_that_lowers_the_total_is_refused_with_what_is_left_of_the_lower_one(
    account, tmp_path
):
    rounds(tmp_path / "one", account, range(ROUNDS))
    strict = Policy(**{**vars(POLICY), "epsilon": 1.0})
    with PopulationLedger.open(account) as people, pytest.raises(BudgetSpent) as refused:
        planned = strict.event(guarantee(strict).noise_multiplier, round=0)
        people.check(strict, planned)
    assert "above their total of ε = 1.000" in str(refused.value)
    assert "of ε = 1.000 at δ" in str(refused.value).split(";")[1]
    assert "of ε = 2.000" not in str(refused.value)


def test_a_stated_total_pays_for_two_whole_runs(account, tmp_path):
    with PopulationLedger.open(account) as population:
        population.state_total(3.1, 1e-6)
    rounds(tmp_path / "one", account, range(ROUNDS))
    rounds(tmp_path / "two", account, range(ROUNDS))  # each at ε = 2: together about 2·√2
    spent = population_spent(account.path)
    assert 2.5 < spent.cost.epsilon <= 3.1
    assert spent.left == pytest.approx(3.1 - spent.cost.epsilon)
    with pytest.raises(BudgetSpent, match=r"is left; spent by one \(training, 6 rounds"):
        rounds(tmp_path / "three", account, range(ROUNDS))


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [(0, 1e-6), (-1, 1e-6), (math.inf, 1e-6), (math.nan, 1e-6), (1, 0), (1, 1), (1, math.nan)],
)
def test_a_total_that_promises_nothing_is_refused(account, epsilon, delta):
    with PopulationLedger.open(account) as population:
        with pytest.raises(ValueError, match=r"epsilon|delta"):
            population.state_total(epsilon, delta)
        assert population.spent().total is None


def test_a_total_is_stated_once_and_never_above_what_was_promised(account, tmp_path):
    rounds(tmp_path / "one", account, range(2))
    with PopulationLedger.open(account) as population:
        for epsilon, delta in ((2.1, 1e-6), (2.0, 2e-6)):
            with pytest.raises(ValueError, match="break that promise"):
                population.state_total(epsilon, delta)
        population.state_total(2.0, 1e-6)
        with pytest.raises(ValueError, match="stated once"):
            population.state_total(1.0, 1e-6)
    generous = Policy(**{**vars(POLICY), "epsilon": 20.0, "delta": 1e-4})
    with pytest.raises(BudgetSpent, match=r"above their total of ε = 2\.000"):
        rounds(tmp_path / "two", account, range(ROUNDS), generous)


def test_streams_and_independent_noise_share_a_total(account, tmp_path):
    stream = Policy(**{**vars(POLICY), "noise": Noise("server", "blt")})
    with PopulationLedger.open(account) as population:
        population.state_total(3.2, 1e-6)
    rounds(tmp_path / "one", account, range(ROUNDS), stream)
    rounds(tmp_path / "two", account, range(ROUNDS))
    cost = population_spent(account.path).cost
    assert 2.5 < cost.epsilon < 3.2
    with pytest.raises(BudgetSpent):
        rounds(tmp_path / "three", account, range(ROUNDS), stream)


def test_what_does_not_compose_is_refused_with_the_reason(account, tmp_path):
    central = {**vars(POLICY), "neighboring": "add_remove", "noise": Noise("server", "gaussian")}
    with PopulationLedger.open(account) as population:
        population.state_total(100.0, 1e-6)
    rounds(tmp_path / "one", account, range(2))
    with pytest.raises(BudgetSpent, match=r"to ∞ \(refused: the rounds state different neighbo"):
        rounds(tmp_path / "two", account, range(2), Policy(**central))


def test_a_repeated_round_of_a_stream_costs_everything(account, tmp_path):
    stream = Policy(**{**vars(POLICY), "noise": Noise("server", "blt")})
    rounds(tmp_path / "one", account, range(2), stream)
    with Run(tmp_path / "one", account, stream) as run:
        event = stream.event(guarantee(stream).noise_multiplier, round=1)
        run.ledger.record_round(1, {"event": asdict(event), "released": "more"}, again=True)
    assert population_spent(account.path).cost.epsilon == math.inf
    assert population_spent(account.path).left == 0.0


def test_a_round_is_debited_here_before_the_runs_own_ledger_has_it(account, tmp_path):
    with Run(tmp_path / "one", account) as run:
        run.population.close()
        with pytest.raises(LedgerError, match="closed"):
            run.round(0)
        assert len(run.ledger.entries()) == 1


def test_killed_between_the_two_debits_a_run_goes_on(account, tmp_path):
    rounds(tmp_path / "one", account, range(3))
    path = tmp_path / "one" / "ledger.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    rounds(tmp_path / "one", account, [2])  # to the byte: the same debit
    assert debits(account) == [0, 1, 2]
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with Run(tmp_path / "one", account) as run:
        run.round(2, released="another")  # released twice: paid for twice
    assert debits(account) == [0, 1, 2, 2]
    assert population_spent(account.path).cost.participations == 2


def test_an_older_copy_of_a_run_is_noticed(account, tmp_path):
    rounds(tmp_path / "one", account, range(2))
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    rounds(tmp_path / "one", account, range(2, 4))
    with pytest.raises(ValueError, match="older copy: round 3"):
        rounds(tmp_path / "copy", account, [2])
    assert debits(account) == [0, 1, 2, 3]


def test_a_copy_that_goes_on_makes_the_original_the_older_one(account, tmp_path):
    rounds(tmp_path / "one", account, range(1))
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    rounds(tmp_path / "copy", account, [1, 2])
    with pytest.raises(ValueError, match="older copy"):
        rounds(tmp_path / "one", account, [1])


def test_a_populations_ledger_begun_again_or_put_back_is_noticed(account, tmp_path):
    rounds(tmp_path / "one", account, range(2))
    older = account.path.read_text()
    rounds(tmp_path / "two", account, range(1))
    account.path.write_text(older)
    with pytest.raises(ValueError, match="older copy of it"):
        rounds(tmp_path / "two", account, [1])
    account.path.unlink()
    with pytest.raises(ValueError, match="is not the ledger that this run began with"):
        rounds(tmp_path / "one", account, [2])


def test_one_run_at_a_time(account, tmp_path):
    with Run(tmp_path / "one", account), pytest.raises(LedgerError, match="another process"):
        PopulationLedger.open(account)


def test_an_edited_debit_is_refused(account, tmp_path):
    rounds(tmp_path / "one", account, range(2))
    account.path.write_text(account.path.read_text().replace('"round":1', '"round":0'))
    with pytest.raises(LedgerError, match="the chain breaks"):
        rounds(tmp_path / "two", account, [0])
    with pytest.raises(LedgerError, match="the chain breaks"):
        population_spent(account.path)


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: entries[2]["event"].update(noise="much"),
        lambda entries: entries[2]["event"].update(noise_multiplier=-1),
        lambda entries: entries[2].pop("event"),
        lambda entries: entries[2].update(round=None),
        lambda entries: entries[1].update(epsilon=None),
        lambda entries: entries[1].update(delta=2),
        lambda entries: entries[1].pop("run"),
        lambda entries: entries.insert(1, {"kind": "total", "epsilon": "4", "delta": 1e-6}),
    ],
)
def test_a_chain_of_entries_that_say_nothing_is_refused_in_one_line(account, tmp_path, change):
    rounds(tmp_path / "one", account, range(1))
    entries = verify(account.path)
    change(entries)
    account.path.write_text("".join(line + "\n" for line in chained(entries)))
    for read in (lambda: population_spent(account.path), lambda: PopulationLedger.open(account)):
        with pytest.raises(LedgerError, match="cannot be accounted for"):
            read()


def test_the_ledger_of_other_people_is_not_taken_for_these(account, tmp_path):
    rounds(tmp_path / "one", account, range(1))
    others = PopulationAccount("cd" * 32, account.folder)
    shutil.copy(account.path, others.path)
    with pytest.raises(LedgerError, match="another population"):
        PopulationLedger.open(others)


def test_the_ledger_of_a_run_is_not_a_populations(account, tmp_path):
    rounds(tmp_path / "one", account, range(2))
    with pytest.raises(LedgerError, match="ledger of a run"):
        population_spent(tmp_path / "one" / "ledger.jsonl")


def test_a_ledger_without_a_run_has_spent_nothing(account):
    PopulationLedger.open(account).close()
    spent = population_spent(account.path)
    assert spent.spent_by == ()
    assert spent.cost is None


@pytest.mark.parametrize("digest", ["", "../../etc", "AB" * 32, "ab" * 31])
def test_a_digest_names_no_other_file(digest, tmp_path):
    with pytest.raises(ValueError, match="SHA-256"):
        PopulationAccount(digest, tmp_path)


def test_a_run_goes_on_with_the_budget_with_which_it_began(account, tmp_path):
    """With another than none, or with none, what it spends would be counted nowhere."""
    with (
        Run(tmp_path / "one", account) as run,
        pytest.raises(ValueError, match="would go on with nobody's"),
    ):
        check_spends_nothing(run.ledger)
    with (
        Ledger.create(tmp_path / "ledger.jsonl", {"run": "r", "policy_digest": "cd"}) as alone,
        PopulationLedger.open(account) as population,
    ):
        check_spends_nothing(alone)
        with pytest.raises(ValueError, match="began without the budget of these people"):
            population.take_up(alone, POLICY)


def test_a_run_that_spent_no_round_promised_nothing(account, tmp_path):
    """Its policy would bind all others for good; it binds from its first round on."""
    strict = replace(POLICY, epsilon=0.5)
    rounds(tmp_path / "strict", account, [], strict)
    assert population_spent(account.path).total is None
    found, wrong = audited_total(verify(account.path))
    assert (found, wrong) == (None, "")
    rounds(tmp_path / "one", account, range(ROUNDS))
    assert population_spent(account.path).total.epsilon == POLICY.epsilon
    assert audited_total(verify(account.path)) == ((POLICY.epsilon, POLICY.delta), "")
    with pytest.raises(BudgetSpent, match=r"above their total of ε = 0\.500 "):
        rounds(tmp_path / "strict", account, [0], strict)


def test_a_total_may_be_stated_above_a_policy_that_spent_no_round(account, tmp_path):
    strict = replace(POLICY, epsilon=0.5)
    rounds(tmp_path / "strict", account, [], strict)
    with PopulationLedger.open(account) as population:
        population.state_total(4.0, 1e-6)
    rounds(tmp_path / "strict", account, [0], strict)
    assert audited_total(verify(account.path)) == ((4.0, 1e-6), "")


def test_the_auditor_sees_a_total_above_what_rounds_had_promised(account, tmp_path):
    rounds(tmp_path / "one", account, [0])
    above = [*verify(account.path), {"kind": "total", "epsilon": 4.0, "delta": 1e-6}]
    assert audited_total(above) == (None, "a total was stated above what was promised before")


def _cut(path: Path, keep: int = 0) -> None:
    """Cut the last line of a ledger off, but for its first ``keep`` bytes."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:keep])


@pytest.mark.parametrize("torn", [0, 1, 100])
def test_a_round_debited_and_not_recorded_is_recorded_when_the_run_goes_on(account, tmp_path, torn):
    """Else it was debited again, and a run that had planned its whole budget never ended."""
    run = Run(tmp_path / "one", account).__enter__()
    for number in range(ROUNDS - 1):
        run.round(number)
    run.ledger.close()  # killed: the population's ledger was not closed either
    run.population._ledger.close()
    debited, own = tmp_path / "one" / "ledger.debited", tmp_path / "one" / "ledger.jsonl"
    assert debited.stat().st_mode & 0o777 == 0o600
    _cut(own, torn)
    with Run(tmp_path / "one", account) as run:
        entries = run.ledger.entries()
        assert [e["round"] for e in entries if e["kind"] == "round"] == [*range(ROUNDS - 1)]
        assert not [e for e in entries if e["kind"] == "recovery"]
        run.round(ROUNDS - 1, "fresh noise")
    assert debits(account) == [*range(ROUNDS)]
    assert not debited.exists()
    verify(own)


@pytest.mark.parametrize("torn", [0, 100])
def test_a_run_whose_kept_line_is_lost_is_no_older_copy(account, tmp_path, torn):
    """What a run writes after a crash, and costs nothing, made it an older copy of itself."""
    rounds(tmp_path / "one", account, range(3))
    _cut(tmp_path / "one" / "ledger.jsonl", torn)
    with Run(tmp_path / "one", account) as run:
        run.ledger.record({"kind": "abandoned", "round": 2, "reports": 0})
    with Run(tmp_path / "one", account) as run:
        run.round(3)
    assert debits(account) == [0, 1, 2, 3]


def test_a_kept_line_that_nobody_was_debited_is_not_recorded(account, tmp_path):
    rounds(tmp_path / "one", account, range(2))
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    with Run(tmp_path / "one", account) as run:
        run.round(2)
        text = (tmp_path / "one" / "ledger.debited").read_bytes()
    for kept in (text.replace(b'"released":"2"', b'"released":"3"'), b"no line"):
        (tmp_path / "copy" / "ledger.debited").write_bytes(kept)
        with Run(tmp_path / "copy", account) as copy:
            assert len(copy.ledger.entries()) == 3

"""The calculator and the check, as a privacy officer runs them."""

from __future__ import annotations

import json
import math
import tomllib

import pytest
import typer

from pfl_lm import cli

BASE = {"--rounds": "100", "--delta": "1e-6", "--adjacency": "zero_out"}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `pfl-lm …`; return (exit status, standard output, standard error)."""

    def run(*words, **options):
        given = BASE | options if words[1] in ("epsilon", "noise") else options
        flat = [word for pair in given.items() for word in pair if word is not None]
        monkeypatch.setattr("sys.argv", ["pfl-lm", *words, *flat])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as left:
            cli.main()
            raise SystemExit(0)
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err

    return run


@pytest.fixture
def epsilon(run):
    def epsilon(*flags, **options):
        status, out, err = run(
            "privacy", "epsilon", *flags, "--json", **{"--noise-multiplier": "1.0", **options}
        )
        assert status == 0, err
        return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    return epsilon


def test_unsampled(epsilon):
    found = epsilon("--sampling", "none", **{"--rounds": "1"})
    assert found["epsilon"] == found["epsilon_unamplified"] == pytest.approx(4.886554117462)
    assert found["rho"] == 0.5
    assert found["accountant"] == "analytic Gaussian"
    assert found["assumptions"]


def test_poisson_by_rate_or_by_counts(epsilon):
    by_rate = epsilon("--sampling", "poisson", **{"--rate": "0.01"})
    by_counts = epsilon("--sampling", "poisson", **{"--population": "100000", "--cohort": "1000"})
    assert by_rate == by_counts
    assert by_rate["epsilon"] < 2 < by_rate["epsilon_unamplified"]


def test_fixed_size_is_bracketed_by_the_truth(epsilon):
    found = epsilon(
        "--sampling", "fixed",
        **{"--population": "1000000", "--cohort": "1000", "--rounds": "2000",
           "--adjacency": "replace_one"},
    )  # fmt: skip
    assert 4.6358 <= found["epsilon"] <= 6.61


@pytest.mark.parametrize(
    ("flags", "options", "expected"),
    [
        (["--sampling", "none"], {"--rounds": "0"}, 0.0),
        (["--sampling", "none"], {"--noise-multiplier": "0"}, math.inf),
        (["--sampling", "poisson"], {"--rate": "0"}, 0.0),
        (["--sampling", "poisson"], {"--population": "10", "--cohort": "0"}, 0.0),
        (["--sampling", "poisson"], {"--rate": "1", "--rounds": "1"}, 4.886554117462),
        (["--sampling", "none"], {"--noise-multiplier": "1e6", "--rounds": "1"}, 0.0),
    ],
)
def test_edges(epsilon, flags, options, expected):
    found = epsilon(*flags, **options)
    assert float(found["epsilon"]) == pytest.approx(expected, abs=1e-10)


def test_replace_one_is_zero_out_at_half_the_noise(epsilon):
    replaced = epsilon("--sampling", "none", **{"--adjacency": "replace_one"})
    halved = epsilon("--sampling", "none", **{"--noise-multiplier": "0.5"})
    assert replaced["epsilon"] == halved["epsilon"]


@pytest.mark.parametrize("mechanism", ["gaussian", "skellam", "discrete_gaussian"])
def test_noise_and_epsilon_are_inverse(run, epsilon, mechanism):
    status, out, _ = run(
        "privacy", "noise", "--json", "--sampling", "none",
        **{"--epsilon": "3", "--mechanism": mechanism},
    )  # fmt: skip
    assert status == 0
    found = json.loads(out)
    again = epsilon(
        "--sampling", "none",
        **{"--noise-multiplier": str(found["noise_multiplier"]), "--mechanism": mechanism},
    )  # fmt: skip
    assert again == found
    assert 2.99 < found["epsilon"] <= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--noise-multiplier": "-1"}, "--noise-multiplier"),
        ({"--noise-multiplier": "nan"}, "--noise-multiplier"),
        ({"--noise-multiplier": "inf"}, "--noise-multiplier"),
        ({"--rounds": "-1"}, "--rounds"),
        ({"--delta": "0"}, "--delta"),
        ({"--delta": "1"}, "--delta"),
        ({"--delta": "nan"}, "--delta"),
        ({"--sampling": "poisson"}, "needs --rate"),
        ({"--sampling": "poisson", "--rate": "1.5"}, "--rate"),
        ({"--sampling": "poisson", "--rate": "nan"}, "--rate"),
        ({"--sampling": "poisson", "--rate": ".1", "--population": "9"}, "needs --rate"),
        ({"--sampling": "poisson", "--population": "9"}, "needs --rate"),
        ({"--sampling": "fixed", "--population": "9", "--cohort": "10"}, "--cohort"),
        ({"--rate": "0.1"}, "--rate"),
        ({"--mechanism": "skellam", "--adjacency": "add_remove"}, "share of the noise"),
        ({"--mechanism": "skellam", "--dim": "0"}, "dim"),
        ({"--mechanism": "blt"}, "needs --sampling rotation with --min-separation"),
        ({"--sampling": "rotation"}, "--sampling rotation needs --min-separation"),
        ({"--sampling": "rotation", "--min-separation": "0"}, "--min-separation"),
        ({"--min-separation": "3"}, "--min-separation and --max-participations need"),
        ({"--sampling": "rotation", "--min-separation": "3", "--rate": ".1"}, "--rate"),
    ],
)
def test_mistakes_get_one_line_and_status_two(run, options, message):
    options = {"--noise-multiplier": "1.0", "--sampling": "none", **options}
    status, out, err = run("privacy", "epsilon", **options)
    assert status == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("mechanism", "participations", "rho"),
    [("gaussian", 2, 1 / 4), ("tree", 2, 4 / 4), ("banded", 2, None), ("blt", 2, None)],
)
def test_rounds_that_lie_apart(run, mechanism, participations, rho):
    options = {"--sampling": "rotation", "--min-separation": "3", "--max-participations": "2"}
    options |= {"--noise-multiplier": "2.0", "--rounds": "7", "--mechanism": mechanism}
    status, out, _ = run("privacy", "epsilon", "--json", **options)
    told = json.loads(out)
    assert status == 0
    assert (told["rounds"], told["participations"]) == (7, participations)
    assert ("stream" in told) == (mechanism != "gaussian")
    if rho is None:
        assert 1 / 4 < told["rho"] < math.inf
    else:
        assert told["rho"] == pytest.approx(rho)


@pytest.mark.parametrize("epsilon", ["0", "-1", "inf", "nan"])
def test_impossible_targets(run, epsilon):
    status, _, err = run("privacy", "noise", **{"--epsilon": epsilon, "--sampling": "none"})
    assert (status, len(err.splitlines())) == (2, 1)


def test_a_person_sees_both_figures(run):
    status, out, _ = run(
        "privacy", "epsilon", "--sampling", "poisson", "--rate", "0.01",
        **{"--noise-multiplier": "1.0"},
    )  # fmt: skip
    assert status == 0
    assert "ε unamplified" in out
    assert "Opacus PRV" in out
    assert "own independent coin" in out


POLICY = """\
# ours
unit = "user"
neighboring = "zero_out"
epsilon = 4.0
delta = 1e-6
population = 1_000_000
report_goal = 1_000
rounds = 100
participation = { kind = "rotation", min_separation = 50 }
noise = { at = "server", kind = "gaussian" }
"""


@pytest.fixture
def policies(tmp_path):
    (tmp_path / "ours.toml").write_text(POLICY, encoding="utf-8")
    return tmp_path


def test_check_writes_locks_and_then_agrees(run, policies):
    assert run("check", str(policies))[0] == 0
    status, out, _ = run("check", str(policies), "--write")
    assert (status, "written" in out) == (0, True)
    written = (policies / "ours.toml").read_text(encoding="utf-8")
    assert written.startswith(POLICY)
    assert written.count("[reviewed]") == 1
    status, out, _ = run("check", str(policies))
    assert (status, "agrees" in out) == (0, True)
    assert "4" in out
    run("check", str(policies), "--write")
    assert (policies / "ours.toml").read_text(encoding="utf-8") == written


def test_a_lock_never_writes_more_than_the_policy_allows(run, policies):
    """Six digits rounded up may pass an ε that a policy states with eight."""
    path = policies / "ours.toml"
    stream = POLICY.replace("epsilon = 4.0", "epsilon = 3.4240074").replace(
        POLICY[POLICY.index("noise") :].splitlines()[0], 'noise = { at = "server", kind = "tree" }'
    )
    path.write_text(stream, encoding="utf-8")
    run("check", str(policies), "--write")
    reviewed = tomllib.loads(path.read_text(encoding="utf-8"))["reviewed"]
    assert reviewed["epsilon"] == 3.4240074
    assert reviewed["rho"] > 0


def test_check_fails_where_a_lock_is_stale(run, policies):
    with (policies / "ours.toml").open("a", encoding="utf-8") as file:
        file.write("\n[reviewed]\nnoise_multiplier = 1.0\n")
    status, out, _ = run("check", str(policies))
    assert status == 1
    assert "reviewed.noise_multiplier" in out


def test_check_refuses_secret_coins_whose_price_is_not_accepted(run, policies):
    path = policies / "below" / "ours.toml"
    path.parent.mkdir()
    text = POLICY.replace('"rotation", min_separation = 50', '"poisson"')
    path.write_text(text, encoding="utf-8")
    status, _, err = run("check", str(policies))
    assert status == 2
    assert f"{path}: accepted_server_epsilon is missing" in err
    path.write_text("accepted_server_epsilon = inf\n" + text, encoding="utf-8")
    assert run("check", str(policies))[0] == 0


@pytest.mark.parametrize("verb", [("epsilon", "--noise-multiplier"), ("noise", "--epsilon")])
@pytest.mark.parametrize(("delta", "weak"), [("0.1", True), ("0.9", True), ("0.001", False)])
def test_a_delta_above_one_in_the_population_is_said(run, verb, delta, weak):
    status, _, err = run(
        "privacy", verb[0], verb[1], "1", "--sampling", "poisson", "--population", "1000",
        "--cohort", "10", "--json", **{"--delta": delta, "--adjacency": "add_remove"},
    )  # fmt: skip
    # 1 − 0.99¹⁰⁰ = 0.63: at δ = 0.9 any noise would do, and none is derived.
    assert status == (2 if (verb[0], delta) == ("noise", "0.9") else 0)
    assert ("above 1/population = 0.001, too weak" in err) is weak


def test_check_takes_one_policy(run, policies):
    status, out, _ = run("check", str(policies / "ours.toml"))
    assert (status, "ours" in out) == (0, True)
    needed = "50 full cohorts of 1,000, nobody twice in them, need 50,000 of 1,000,000 users"
    assert needed in " ".join(out.split())


def test_check_says_of_each_policy_how_many_people_its_own_cohorts_need(run, policies):
    text = (policies / "ours.toml").read_text(encoding="utf-8")
    once = text.replace("report_goal = 1_000", "report_goal = 900")
    assert once != text
    (policies / "more.toml").write_text(once, encoding="utf-8")
    out = " ".join(run("check", str(policies))[1].split())
    for goal, needed in (("900", "45,000"), ("1,000", "50,000")):
        line = f"50 full cohorts of {goal}, nobody twice in them, need {needed} of 1,000,000 users"
        assert line in out


@pytest.mark.parametrize("verb", ["check", "audit"])
def test_a_table_written_as_a_word_is_named_with_what_it_takes(run, policies, verb):
    path = policies / "ours.toml"
    text = path.read_text(encoding="utf-8")
    start = text.index("participation =")
    words = text[:start] + 'participation = "poisson"' + text[text.index("\n", start) :]
    path.write_text(words, encoding="utf-8")
    status, _, err = run(verb, str(path))
    assert status == 2
    assert "participation = 'poisson' is refused: expected a table with kind, min_separation" in err


@pytest.mark.parametrize("kind", ["blt", "banded", "banded_inverse_root", "tree"])
@pytest.mark.parametrize(
    ("rounds", "separation"), [("1000000", "7"), ("1000000000", "1"), ("5000", "1")]
)
def test_a_stream_that_would_take_hours_is_refused_at_once(run, kind, rounds, separation):
    flags = {"--rounds": rounds, "--min-separation": separation, "--mechanism": kind}
    status, _, err = run(
        "privacy", "epsilon", "--noise-multiplier", "1", "--sampling", "rotation", **flags
    )
    assert status == 2
    assert "is planned for at most 10,000 rounds" in err
    assert err.count("\n") == 1


def test_check_of_nothing_is_a_mistake(run, tmp_path):
    status, _, err = run("check", str(tmp_path))
    assert (status, "no policies" in err) == (2, True)


def test_a_plan_lists_every_cohort_and_length(run):
    people = ("--population", "1000000", "--epsilon", "2", "--delta", "1e-6")
    asked = ("--reports", "5000", "--reports", "20000", "--rounds", "150", "--rounds", "300")
    status, out, _ = run("privacy", "plan", *people, *asked, "--json")
    plans = json.loads(out)
    assert status == 0
    assert [(p["rounds"], p["reports"], p["joins"], p["separation"]) for p in plans] == [
        (150, 5000, 1, 150), (150, 20000, 3, 50), (300, 5000, 2, 200), (300, 20000, 6, 50),
    ]  # fmt: skip
    status, out, _ = run("privacy", "plan", *people)
    assert (status, "4.143" in out, "2.07e-04" in out) == (0, True, True)


def test_a_plan_of_few_people_asks_them_all_and_of_too_many_reports_is_refused(run):
    few = ("privacy", "plan", "--population", "500", "--epsilon", "2")
    status, out, _ = run(*few, "--json")
    assert (status, {p["reports"] for p in json.loads(out)}) == (0, {500})
    for wrong in (("--reports", "501"), ("--reachable", "501"), ("--delta", "0.1")):
        status, _, err = run(*few, *wrong)
        assert (status, wrong[0][2:] in err, err.count("\n")) == (2, True, 1)


def test_check_finds_a_shipped_policy_by_its_name_and_never_writes_it(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("keyboard_10m", "privacy/keyboard_10m"):
        status, out, _ = run("check", name)
        assert (status, "10,000,000" in out) == (0, True)
    status, _, err = run("check", "keybord_10m")
    assert (status, "privacy/keyboard_10m" in err) == (2, True)
    status, _, err = run("check", "keyboard_10m", "--write")
    assert (status, "of your own" in err) == (2, True)


def test_check_of_a_project_leaves_out_what_is_no_policy(run, tmp_path):
    (tmp_path / "scenario.toml").write_text("rounds = 3\ncohort = 4\n", encoding="utf-8")
    status, _, err = run("check", str(tmp_path))
    assert (status, "no policies" in err) == (2, True)
    (tmp_path / "policy.toml").write_text("epsilon = \n", encoding="utf-8")
    status, _, err = run("check", str(tmp_path))
    assert (status, "policy.toml" in err) == (2, True)


def test_the_shipped_policies_agree_with_their_locks(run):
    from pathlib import Path

    status, out, _ = run("check", str(Path(__file__).resolve().parents[2] / "privacy"))
    assert status == 0, out
    assert "no lock" not in out


def verbs_that_debit_people():
    """The verbs that train on people's text or ask them, by the option that names the ledgers."""
    reads_only = {"check", "audit", "privacy population"}
    commands = [("", typer.main.get_command(cli.app))]
    for path, command in commands:
        commands += [
            (f"{path} {name}".strip(), child)
            for name, child in getattr(command, "commands", {}).items()
        ]
        options = {option for parameter in command.params for option in parameter.opts}
        if "--ledgers" in options and path not in reads_only:
            yield path, command


def test_the_help_of_the_budget_names_every_verb_that_debits_it():
    found = dict(verbs_that_debit_people())
    assert {"simulate", "serve", "words serve", "mixture ask"} <= set(found)
    budget = typer.main.get_command(cli.app).commands["privacy"].commands["population"].help
    words = " ".join(budget.split())
    assert [verb for verb in found if f"`{verb}`" not in words] == []


def test_the_help_of_the_audit_names_every_question_that_it_takes():
    audit = typer.main.get_command(cli.app).commands["audit"]
    target = next(parameter for parameter in audit.params if parameter.name == "target")
    questions = {verb for verb, _ in verbs_that_debit_people()} - {"simulate", "serve"}
    assert [verb for verb in questions if f"`{verb}`" not in target.help] == []

"""The calculator and the check, as a privacy officer runs them."""

from __future__ import annotations

import json
import math

import pytest

from pfl_lm import cli

BASE = {"--rounds": "100", "--delta": "1e-6", "--adjacency": "zero_out"}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `pfl-lm …`; return (exit status, standard output, standard error)."""

    def run(*words, **options):
        given = {**BASE, **options} if words[0] == "privacy" else options
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
    assert float(found["epsilon"]) == pytest.approx(expected)


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
        ({"--noise-multiplier": "-1"}, "noise_multiplier"),
        ({"--noise-multiplier": "nan"}, "noise_multiplier"),
        ({"--noise-multiplier": "inf"}, "noise_multiplier"),
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
    ],
)
def test_mistakes_get_one_line_and_status_two(run, options, message):
    options = {"--noise-multiplier": "1.0", "--sampling": "none", **options}
    status, out, err = run("privacy", "epsilon", **options)
    assert status == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


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


def test_check_fails_where_a_lock_is_stale(run, policies):
    with (policies / "ours.toml").open("a", encoding="utf-8") as file:
        file.write("\n[reviewed]\nnoise_multiplier = 1.0\n")
    status, out, _ = run("check", str(policies))
    assert status == 1
    assert "reviewed.noise_multiplier" in out


def test_check_of_nothing_is_a_mistake(run, tmp_path):
    status, _, err = run("check", str(tmp_path))
    assert (status, "no policies" in err) == (2, True)


def test_the_shipped_policies_agree_with_their_locks(run):
    from pathlib import Path

    status, out, _ = run("check", str(Path(__file__).resolve().parents[2] / "privacy"))
    assert status == 0, out
    assert "no lock" not in out

"""The auditor's accountants against tables that nobody here computed, and against each other."""

from __future__ import annotations

import ast
import csv
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.audit.accounting import methods, renyi
from pfl_lm.audit.accounting.round_groups import RoundGroup, coarsened
from pfl_lm.audit.gaussians import gaussian_epsilon


def gaussian(z: float, rounds: int = 1, rate: float = 1.0, **other) -> RoundGroup:
    settings = {"neighboring": "add_remove", "sampling": "poisson" if rate < 1 else "none"} | other
    return RoundGroup(
        mechanism="gaussian", noise_multiplier=z, rounds=rounds, rate=rate, **settings
    )


def proven(groups: list[RoundGroup], delta: float) -> float:
    return methods.best_bound(methods.recompute(groups, delta)).epsilon


# Copies of rows of the oracle tables: (row, z, rate, rounds, delta, least, most).
ACCOUNTING = [
    ("A02", 1.0, 1.0, 1, 1e-6, 4.886554117462159, 4.945419658636781),
    ("A12", 1e6, 1.0, 1, 1e-6, 0.0, 0.01),
    ("C04", 1.0, 0.005, 2000, 1e-6, 1.394778836344099, 1.4289073696984163),
    ("C12", 0.4, 1e-5, 500, 1e-9, 3.762983718932115, 3.8114145112299775),
]


@pytest.mark.parametrize(("row", "z", "rate", "rounds", "delta", "least", "most"), ACCOUNTING)
def test_accounting_rows_kept_here(row, z, rate, rounds, delta, least, most):
    assert least - 1e-3 <= proven([gaussian(z, rounds, rate)], delta) <= most, row


@pytest.mark.parametrize(
    ("rho", "published"), [(0.1506840301548885, 3.4240074), (0.014342572340349278, 0.9935501)]
)
def test_published_production_figures(rho, published):
    # Gboard es-ES and pt-BR at δ = 1e-10: one Gaussian release of that ρ.
    group = gaussian((2 * rho) ** -0.5)
    assert proven([group], 1e-10) == pytest.approx(published, abs=2e-7)


def test_the_published_tree_run_of_2022():
    # es-ES 2022: z = 7, T = 2000, k = 6, min_separation 314 gives ρ = 79/98; δ = 1e-10.
    group = gaussian((2 * 79 / 98) ** -0.5)
    assert methods.dp_accounting_rdp([group], 1e-10) == pytest.approx(8.8986, abs=1e-4)
    assert methods.closed_form([group], 1e-10) == pytest.approx(8.526, abs=5e-4)


@pytest.mark.parametrize("kind", ["gaussian", "poisson", "poisson-FL", "fixed-WOR", "zCDP"])
def test_the_accounting_table(shared, kind):
    with (shared / "oracles" / "accounting.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["mechanism"] == kind]
    assert rows
    # Not every row of the long parts: a tight figure takes a second, and dp's tests have all.
    for row in rows[:: {"poisson": 2, "poisson-FL": 3}.get(kind, 1)]:
        delta = float(row["delta"])
        tolerance = 5e-3 if delta <= 1e-9 else 1e-3
        group = phase_of(row)
        # One tight accountant and one loose, instead of all: the tight one takes a second a row.
        tight = methods.pld if group.sampling == "poisson" else methods.dp_accounting_rdp
        found = (methods.closed_form if group.sampling == "none" else tight)([group], delta)
        assert methods.published_renyi([group], delta) >= found - 1e-3, row["point"]
        least = float(row["eps_lower(sound: report must be >=)"])
        assert found >= least - tolerance, row["point"]
        if row["recommended_upper(tight accountant)"]:
            assert found <= float(row["recommended_upper(tight accountant)"]), row["point"]
        elif row["eps_rdp(loose valid upper)"]:
            assert found <= float(row["eps_rdp(loose valid upper)"]) * 1.0001, row["point"]


def phase_of(row) -> RoundGroup:
    if row["mechanism"] == "zCDP":
        return gaussian((2 * ast.literal_eval(row["extra"])["rho"]) ** -0.5)
    z, rate, rounds = float(row["noise_multiplier"]), float(row["q"]), int(row["T"])
    if row["mechanism"] == "fixed-WOR":
        fixed = {"sampling": "fixed", "neighboring": "replace_one", "population": int(row["N"])}
        return gaussian(z, rounds, rate, **fixed)
    return gaussian(z, rounds, rate)


def test_two_phases_of_the_accounting_table(shared):
    with (shared / "oracles" / "accounting.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["mechanism"] == "heterogeneous"]
    for row in rows:
        parts = ast.literal_eval(row["extra"])["parts"]
        found = proven(
            [gaussian(z, rounds, rate) for z, rate, rounds in parts], float(row["delta"])
        )
        least = float(row["eps_lower(sound: report must be >=)"])
        assert least - 1e-3 <= found <= float(row["recommended_upper(tight accountant)"]), row


def test_published_accounting_of_distributed_noise(shared):
    with (shared / "oracles" / "ddp.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 30
    for row in rows:
        found = renyi.epsilon([distributed(row)], float(row["delta"]))
        assert found == pytest.approx(float(row["eps_reference_code"]), rel=1e-6), row["id"]


def distributed(row) -> RoundGroup:
    dim, clip = int(row["dim_padded"]), float(row["l2_clip"])
    rate = float(row["q"])
    return RoundGroup(
        mechanism="skellam" if row["mechanism"] == "dskellam" else "discrete_gaussian",
        neighboring="zero_out",
        sampling="poisson" if rate < 1 else "none",
        noise_multiplier=float(row["central_noise_mult_vs_clip"]),
        rounds=int(row["rounds"]),
        rate=rate,
        dim=dim,
        grid_steps=float(row["scale=1/gamma"]) * clip / math.sqrt(dim),
        shares=int(row["n_clients"]),
    )


def test_the_discrete_bounds_cover_exact_divergences(shared):
    with (shared / "oracles" / "ddp_exact.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["quantity"] in EXACT]
    assert rows
    for row in rows:
        bound = EXACT[row["quantity"]](row, np.array([float(row["alpha"])]))
        assert bound[0] >= float(row["exact"]) * (1 - 1e-9), row


EXACT = {
    "skellam_renyi_1d": lambda row, orders: renyi.skellam(
        orders, *(2 * [float(row["n_or_shift"])]), float(row["sigma_or_mu(variance)"])
    ),
}


# --- the table of methods --------------------------------------------------------------------


def answers(groups, delta):
    return {row.method.name.split(",")[-1].strip(): row for row in methods.recompute(groups, delta)}


def test_approximations_never_certify():
    # Where Opacus' GDP says 0.024, the truth is 3.76.
    rows = methods.recompute([gaussian(0.4, 500, 1e-5)], 1e-9)
    fooled = next(row for row in rows if row.method.name.endswith("GDP"))
    assert fooled.epsilon < 0.1
    assert not fooled.is_bound
    assert methods.best_bound(rows).epsilon > 3.7


def test_each_library_appears_where_it_applies():
    table = answers([gaussian(1.0, 100, 0.01)], 1e-6)
    assert {name for name, row in table.items() if row.epsilon is not None} == {
        "PLD", "PRV", "RDP", "published Rényi bounds", "without sampling", "GDP",
    }  # fmt: skip
    assert "no closed form" in table["closed form (Balle & Wang 2018)"].reason


def test_discrete_noise_rests_on_the_published_bounds_alone():
    group = RoundGroup("skellam", "zero_out", "poisson", 1.0, 1000, 0.001, 10**6, dim=10**6)
    rows = methods.recompute([group], 1e-6)
    bounds = [row.method.name for row in rows if row.is_bound]
    assert bounds == ["published Rényi bounds", "without sampling"]
    approximation = next(r for r in rows if r.method.name == "Gaussian of equal variance")
    assert 0 < approximation.epsilon < methods.best_bound(rows).epsilon


def test_poisson_figures_are_refused_for_cohorts_of_fixed_size():
    fixed = gaussian(1.0, 2000, 0.001, sampling="fixed", population=10**6)
    rows = methods.recompute([fixed], 1e-6)
    assert methods.best_bound(rows).epsilon > 4.63  # row D03; the Poisson figure is 0.25
    assert all(row.epsilon is None for row in rows if row.method.name.endswith("PLD"))


def test_who_sees_less_is_protected_no_less_than_who_knows_the_cohorts():
    """One round of a cohort of fixed size: the proof of amplification costs more than it saves."""
    fixed = gaussian(0.84, 1, 0.005, sampling="fixed", population=10**6, neighboring="zero_out")
    known = gaussian_epsilon(1 / 0.84, 1e-6)
    assert methods.published_renyi([fixed], 1e-6) > known
    assert proven([fixed], 1e-6) == pytest.approx(known)
    assert methods.quick_epsilon([fixed], 1e-6) == pytest.approx(known)


def test_who_leaves_a_cohort_of_fixed_size_makes_room_for_another():
    fixed = gaussian(2.0, 1, 0.005, sampling="fixed", population=10**6)
    assert fixed.seen_by_server().sensitivity == 2
    known = methods.quick_epsilon([fixed.seen_by_server()], 1e-6)
    assert known == pytest.approx(gaussian_epsilon(1.0, 1e-6))


def test_replacing_a_user_is_twice_the_distance():
    once = proven([gaussian(1.0)], 1e-6)
    replaced = proven([gaussian(2.0, neighboring="replace_one")], 1e-6)
    assert replaced == pytest.approx(once, abs=1e-6)


@pytest.mark.parametrize("groups", [[], [gaussian(1.0, 0)], [gaussian(1.0, 9, 0.0)]])
def test_nothing_released_costs_nothing(groups):
    assert proven(groups, 1e-6) == 0.0


def test_no_noise_is_no_guarantee():
    assert proven_or_none([gaussian(0.0)]) in (None, math.inf)
    none = RoundGroup("none", "zero_out", "poisson", 0.0, 10, 0.1, 1000)
    assert proven_or_none([none]) is None


def proven_or_none(groups):
    best = methods.best_bound(methods.recompute(groups, 1e-6))
    return None if best is None else best.epsilon


@given(st.floats(0.3, 5), st.integers(1, 50), st.floats(1e-9, 1e-4))
def test_rounds_without_sampling_are_one_release(z, rounds, delta):
    exact = gaussian_epsilon(math.sqrt(rounds) / z, delta)
    assert methods.closed_form([gaussian(z, rounds)], delta) == pytest.approx(exact)
    assert renyi.epsilon([gaussian(z, rounds)], delta) >= exact - 1e-9


def test_a_boundary_round_is_charged_to_delta():
    # One report in two decides about opening: no δ is left, so nothing is proven.
    risky = RoundGroup(
        "skellam", "zero_out", "poisson", 1.0, 1000, 0.001, 10**6, least_reports=1000
    )
    assert risky.pivotal > 0.01
    assert methods.best_bound(methods.recompute([risky], 1e-6)) is None
    calm = RoundGroup("skellam", "zero_out", "poisson", 1.0, 1000, 0.001, 10**6, least_reports=700)
    assert calm.pivotal < 1e-18


@given(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=30))
def test_coarse_phases_cost_no_less_and_not_much_more(multipliers):
    groups = [gaussian(z) for z in multipliers]
    merged = coarsened(groups)
    assert len(merged) <= 6
    assert sum(p.rounds for p in merged) == len(groups)
    exact, coarse = (methods.closed_form(p, 1e-6) for p in (groups, merged))
    assert exact - 1e-9 <= coarse <= exact * 1.6 + 1e-9


def test_no_torch_is_loaded():
    code = (
        "import sys; from pfl_lm.audit.accounting import methods;"
        "from pfl_lm.audit.accounting.round_groups import RoundGroup;"
        "p = RoundGroup('gaussian', 'zero_out', 'poisson', 1.0, 100, 0.01, 1000);"
        "rows = methods.recompute([p], 1e-5);"
        "assert sum(r.epsilon is not None for r in rows) >= 5, rows;"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

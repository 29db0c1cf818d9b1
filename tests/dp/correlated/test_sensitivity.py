"""Sensitivities against all patterns of participation, and against figures of other libraries."""

from __future__ import annotations

import csv
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.dp.correlated import banded, blt, toeplitz, tree
from pfl_lm.dp.correlated.strategy import Strategy, choose

ORACLE = Path(__file__).resolve().parents[4] / "shared" / "oracles" / "matrix.csv"


def rows() -> list[dict[str, str]]:
    if not ORACLE.exists():
        return []
    with ORACLE.open() as lines:
        return [row for row in csv.DictReader(lines) if not row["mechanism"].startswith("dense")]


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in re.findall(r"[-\d.e]+", text))


def column_of(row: dict[str, str], n: int) -> np.ndarray:
    bands, kind = int(row["bands_or_buffers"]), row["mechanism"].split()[0]
    if kind.startswith("identity"):
        return np.ones(1)
    if kind == "full":
        return banded.square_root(n)
    if kind == "BISR":
        return toeplitz.inverse(banded.inverse_square_root(bands), n)
    if kind == "banded":
        return banded.optimise(n, bands)
    decays, scales = re.findall(r"\[(.*?)\]", row["params"])
    return blt.Blt(numbers(decays), numbers(scales)).coefficients(n)


@pytest.mark.skipif(not rows(), reason="figures of other libraries are not here")
@pytest.mark.parametrize("row", rows(), ids=lambda row: row["id"])
def test_figures_of_other_libraries(row):
    n, step = int(row["n"]), int(row["min_sep_b(j-i>=b)"])
    column = column_of(row, n)
    squared = toeplitz.squared_sensitivity(column, n, step, int(row["max_part_k"]))
    errors = toeplitz.prefix_errors(column, n)
    assert squared == pytest.approx(float(row["sens_sq"]), rel=1e-6)
    assert errors[-1] == pytest.approx(float(row["max_sq_error"]), rel=1e-6)
    assert errors.mean() == pytest.approx(float(row["mean_sq_error"]), rel=1e-6)


def patterns(n: int, step: int, times: int):
    for count in range(1, times + 1):
        for rounds in itertools.combinations(range(n), count):
            if all(b - a >= step for a, b in itertools.pairwise(rounds)):
                yield rounds


def brute_force(column: np.ndarray, n: int, step: int, times: int) -> float:
    """Worst sum over patterns of |⟨C_i, C_j⟩|: what unit vectors of any direction can reach."""
    padded = np.pad(column[:n], (0, max(0, n - len(column))))
    lower = np.array([[padded[i - j] if i >= j else 0.0 for j in range(n)] for i in range(n)])
    gram = np.abs(lower.T @ lower)
    return max(float(gram[np.ix_(p, p)].sum()) for p in patterns(n, step, times))


@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=9),
    st.integers(2, 9),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_no_pattern_costs_more_than_the_bound(coefficients, n, step, times):
    column = np.array([1.0, *coefficients])
    bound = toeplitz.squared_sensitivity(column, n, step, times)
    assert bound >= brute_force(column, n, step, times) * (1 - 1e-9)


@pytest.mark.parametrize("kind", ["blt", "banded", "banded_inverse_root", "identity"])
@pytest.mark.parametrize(("n", "step", "times"), [(12, 3, 4), (12, 5, 2), (9, 9, 1), (10, 2, 3)])
def test_shipped_strategies_are_exact(kind, n, step, times):
    strategy = choose(kind, n, step, times)
    column = strategy.coefficients(n)
    assert (column >= 0).all()
    assert (np.diff(column) <= 0).all()
    squared = strategy.squared_sensitivity(n, step, times)
    assert squared == pytest.approx(brute_force(column, n, step, times), rel=1e-9)


@pytest.mark.parametrize(
    ("multiplier", "rounds", "step", "rho"),
    [(2, 4, 2, 1.0), (1, 5, 2, 4.5), (1, 7, 2, 5.5), (1, 7, 3, 4.5)],
)
def test_trees_without_restart(multiplier, rounds, step, rho):
    assert tree.rho(multiplier, rounds, step, rounds) == rho


def test_a_published_tree():
    """The es-ES model of 2022: z = 7, ρ = 79/98 (Gboard's separation of 313 is 314 here)."""
    assert tree.squared_sensitivity(2000, 314, 6) == 79


@pytest.mark.parametrize("n", [1, 2, 5, 7, 8, 11, 12])
@pytest.mark.parametrize("step", [1, 2, 3, 5])
@pytest.mark.parametrize("times", [1, 2, 4])
def test_trees_against_all_patterns(n, step, times):
    def value(pattern):
        total, length = 0, 1
        while length <= n:
            nodes = [r // length for r in pattern if r // length < n // length]
            total += sum(nodes.count(node) ** 2 for node in set(nodes))
            length *= 2
        return total

    worst = max(value(pattern) for pattern in patterns(n, step, times))
    assert tree.squared_sensitivity(n, step, times) == worst
    assert tree.by_levels(n, step, min(times, 1 + (n - 1) // step)) >= worst


def test_a_user_in_every_round_of_a_long_tree():
    """More rounds of one user than functions may call themselves; all nodes are full."""
    n = 2000
    every = sum((n // length) * length**2 for length in (1 << level for level in range(11)))
    assert tree.squared_sensitivity(n, 1, n) == every


def test_many_rounds_of_a_user_are_searched_and_not_only_bounded():
    assert tree.squared_sensitivity(140, 3, 12) == 546 < tree.by_levels(140, 3, 12)


def test_a_published_blt():
    decays = (0.9999999999921251, 0.9944453083640997, 0.8985923474607591, 0.4912001418098778)
    scales = (0.0070314825502323835, 0.10613806907600574, 0.1898159060327625, 0.1966594748073734)
    strategy = Strategy("blt", scales, decays)
    assert strategy.squared_sensitivity(100, 50, 2) / 2 == pytest.approx(3.17226586, abs=1e-8)


@pytest.mark.parametrize(("n", "optimum"), [(150, 2.6607), (1000, 3.2650), (2000, 3.4857)])
def test_the_optimum_for_users_who_come_once(n, optimum):
    assert (banded.square_root(n) ** 2).sum() == pytest.approx(optimum, abs=5e-5)


@pytest.mark.parametrize(
    ("n", "step", "times", "buffers", "error", "reference"),
    [
        (2000, 1429, 2, 3, "max", 5.026807467232394),
        (2052, 342, 6, 2, "max", 10.806269364319759),
        (2052, 342, 6, 3, "mean", 9.182751906980464),
        (1000, 100, 10, 2, "mean", 12.193851565550721),
    ],
)
def test_optimised_blts_are_no_worse_than_those_of_jax_privacy(
    n, step, times, buffers, error, reference
):
    column = blt.optimise(n, step, times, buffers, error).coefficients(n)
    errors = toeplitz.prefix_errors(column, n)
    worst = errors[-1] if error == "max" else errors.mean()
    loss = math.sqrt(worst * toeplitz.squared_sensitivity(column, n, step, times))
    assert loss <= reference * (1 + 1e-6)


def test_a_blt_comes_near_the_optimum():
    """Mean error × sensitivity² for users who come once: a percent from the square root's."""
    blt_, root = choose("blt", 256, 256, 1), banded.square_root(256)
    loss = blt_.prefix_errors(256).mean() * blt_.squared_sensitivity(256, 256, 1)
    assert loss < 1.01 * toeplitz.prefix_errors(root, 256).mean() * (root**2).sum()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_costs_everything(bad):
    assert toeplitz.squared_sensitivity(np.array([1.0, bad]), 4, 1, 2) == math.inf
    with pytest.raises(ValueError, match="finite"):
        Strategy("banded", (bad,))


def test_numbers_that_describe_no_strategy_are_refused():
    for arguments in (
        ("unknown", (0.5,)),
        ("blt", (0.5,), ()),
        ("blt", (0.5,), (1.0,)),
        ("banded", (0.5,), (0.5,)),
        ("identity", (0.5,)),
        ("banded", ()),
    ):
        with pytest.raises(ValueError, match=r"."):
            Strategy(*arguments)
    for rounds, step, times in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            toeplitz.squared_sensitivity(np.ones(1), rounds, step, times)

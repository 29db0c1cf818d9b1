"""Exact noise: the certified tables, the lazy inversion, and the bits behind them."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pfl_lm.dp.sampler import discrete_noise as samplers
from pfl_lm.dp.sampler import rejection
from pfl_lm.dp.sampler.alias import REST, SHARE_BITS
from pfl_lm.dp.sampler.discrete_noise import add_noise, table
from pfl_lm.dp.sampler.pmf import UNIT, Kind, TableKind, chernoff_exponent, survival, tail_radius
from pfl_lm.dp.sampler.random_bits import RandomBits, reproducible_bits, secure_bits
from pfl_lm.streams import key

KINDS: tuple[Kind, Kind] = ("skellam", "discrete_gaussian")


def probability(kind: Kind, variance: float, k: int) -> mpmath.mpf:
    """P(k) to 100 digits, by closed forms that the package does not use."""
    v = mpmath.mpf(variance)
    if kind == "skellam":
        return mpmath.exp(-v) * mpmath.besseli(k, v)
    # Σ exp(−k²/2v) over all k is the Jacobi theta function at nome exp(−1/2v).
    return mpmath.exp(-mpmath.mpf(k * k) / (2 * v)) / mpmath.jtheta(3, 0, mpmath.exp(-1 / (2 * v)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variance", [0.001, 0.003, 0.05, 0.3, 1.0, 7.25, 900.0, 1e5 / 3])
def test_every_probability_is_certified_to_200_bits(kind: Kind, variance: float) -> None:
    above = dict(survival(kind, variance))
    deviation = variance**0.5
    with mpmath.workdps(110):
        for k in {0, 1, 2, int(deviation), int(4 * deviation) + 1, int(12 * deviation) + 5}:
            # P(k) = P(X > k − 1) − P(X > k), and P(X > −1) = 1 − P(X > 0) by symmetry.
            before = above.get(k - 1, 0) if k else 2**UNIT - above[0]
            found = mpmath.mpf(before - above.get(k, 0)) / mpmath.mpf(2) ** UNIT
            assert abs(found - probability(kind, variance, k)) < mpmath.mpf(2) ** -200


def test_the_table_of_rejection_counts_zero_twice() -> None:
    once, twice = (
        dict(survival("discrete_gaussian", 40.0)),
        dict(survival("two_zero_gaussian", 40.0)),
    )
    with mpmath.workdps(110):
        zero = probability("discrete_gaussian", 40.0, 0)
        for k in (0, 1, 7, 50):
            assert abs(once[k] / (1 + zero) - twice[k]) < 2 ** (UNIT - 200)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variance", [0.3, 50.0, 4e4])
def test_chernoff_tails_hold_and_are_not_wasteful(kind: Kind, variance: float) -> None:
    above = dict(survival(kind, variance))
    for distance in (1, int(variance**0.5 * 3) + 1, int(variance**0.5 * 9) + 1):
        bound = np.exp(-chernoff_exponent(kind, variance, distance))
        assert above[distance - 1] / 2**UNIT <= bound
    radius = tail_radius(kind, variance, 40)
    assert above[radius - 1] / 2**UNIT <= 2.0**-40
    assert above[max(int(radius * 0.85) - 2, 0)] / 2**UNIT > 2.0**-40


class Scripted(RandomBits):
    """RandomBits that are the given integers, each with its width, in order."""

    def __init__(self, *words: tuple[int, int]) -> None:
        super().__init__(bytes(32))
        self.words = iter(words)

    def fill(self, out: np.ndarray[Any, Any]) -> None:
        word, width = next(self.words)
        # Words of 48 bits are taken from the top of 64.
        word <<= 16 if width == 48 else 0
        out[:] = np.frombuffer(word.to_bytes(out.nbytes, "little"), dtype=out.dtype)


def parts(uniform: int, *widths: int) -> Iterator[tuple[int, int]]:
    """A 256-bit number, cut from its most significant bit on."""
    left = UNIT
    for width in widths:
        left -= width
        yield (uniform >> left) & ((1 << width) - 1), width


SPLIT = [
    ("skellam", 0.001),
    ("skellam", 0.5),
    ("skellam", 255.0**2),  # the last that has a stretch for every magnitude
    ("skellam", 300.0**2),
    ("skellam", 3000.0**2),
    ("discrete_gaussian", 30.0),
    ("discrete_gaussian", 2048.0**2),
    ("two_zero_gaussian", 900.0**2),
]


@pytest.mark.parametrize(("kind", "variance"), SPLIT)
def test_alias_table_and_rest_make_up_the_distribution(kind: TableKind, variance: float) -> None:
    """In integers: what words choose and what is left to the rest add up to every P(|X| = k)."""
    above, shares, low_bits = samplers._split(kind, variance)
    assert sum(shares) == 2**SHARE_BITS
    rest = shares[REST] << (UNIT - SHARE_BITS)  # 2^256 · its probability
    boundaries = [0, *samplers._boundaries(above, shares, low_bits)]  # P(|X| > k) in the rest
    boundaries = [1 << UNIT, *reversed(boundaries)]
    for k in range(len(above)):
        chosen = shares[k >> low_bits] if k >> low_bits < REST else 0
        chosen <<= UNIT - SHARE_BITS - low_bits
        left = Fraction(boundaries[k] - boundaries[k + 1], 1 << UNIT) * rest
        wanted = 2 * (above[k - 1] - above[k]) if k else (1 << UNIT) - 2 * above[0]
        assert abs(chosen + left - wanted) <= 1
        assert left >= 0
    assert rest < 0.007 * 2**UNIT


@pytest.mark.parametrize(("kind", "variance"), SPLIT)
def test_every_outcome_of_a_word_has_its_exact_share(kind: TableKind, variance: float) -> None:
    """Counted over all columns and all that is compared with their thresholds."""
    found = table(kind, variance).alias
    _, shares, low_bits = samplers._split(kind, variance)
    columns, thresholds = np.arange(REST + 1), found.entries & 2047
    steps = found.entries >> 11
    assert (steps % 2**low_bits == 0).all()
    assert (thresholds <= 1024).all()
    chosen = np.zeros(REST + 1, np.int64)
    np.add.at(chosen, columns, thresholds)
    np.add.at(chosen, columns + (steps >> low_bits), 1024 - thresholds)
    assert chosen.tolist() == shares


@pytest.mark.parametrize("variance", [30.0, 300.0**2])
@given(word=st.integers(0, 2**32 - 1), near=st.integers(-1, 1))
def test_a_word_means_what_its_bits_say(variance: float, word: int, near: int) -> None:
    """Also right at and beside a column's threshold."""
    found = table("skellam", variance)
    low_bits, shift = found.alias.low_bits, 12 - found.alias.low_bits
    column, sign = word >> 22, word & 1
    threshold, step = found.alias.entries[column] & 2047, found.alias.entries[column] >> 11
    for choice in (word >> shift & 1023, min(max(int(threshold) + near, 0), 1023)):
        exact = word & ~(1023 << shift) | choice << shift
        size = (column << low_bits) + (0 if choice < threshold else int(step))
        out = np.zeros(1, dtype=np.int64)
        left = found.alias.add(Scripted((exact, 32)).octets(4), out)
        if size == REST << low_bits:
            assert left.tolist() == [sign << 31]
            assert out[0] == 0
        else:
            size |= word >> 22 - low_bits & (2**low_bits - 1)
            assert len(left) == 0
            assert out[0] == (-size if sign else size)


@pytest.mark.parametrize(("kind", "variance"), [one for one in SPLIT if one[1] < 1e5])
@given(uniform=st.integers(0, 2**UNIT - 1), k=st.integers(0, 60_000), step=st.integers(-1, 1))
@settings(max_examples=20)
def test_the_rest_is_the_inverse_of_its_cumulative_probabilities(
    kind: TableKind, variance: float, uniform: int, k: int, step: int
) -> None:
    """Also for a number equal or next to a boundary, where all 256 bits are needed."""
    descending = boundaries_of(kind, variance)
    boundary = descending[k % len(descending)]
    for value in (uniform, min(max(boundary + step, 0), 2**UNIT - 1)):
        out = np.zeros(3, dtype=np.int64)
        left = np.array([2 | 1 << 31], dtype=np.uint32)
        table(kind, variance).add_rest(left, out, Scripted(*parts(value, 64, 192)))
        assert out.tolist() == [0, 0, -sum(value < boundary for boundary in descending)]


@lru_cache
def boundaries_of(kind: TableKind, variance: float) -> list[int]:
    """2^256·P(|X| > k) in the rest, for k = 0, 1, …"""
    return [*samplers._boundaries(*samplers._split(kind, variance))][::-1]


def chi_square(samples: np.ndarray[Any, Any], kind: Kind, variance: float) -> float:
    """p-value of samples against the exact distribution, in about 60 bins of like probability."""
    above = dict(survival(kind, variance)) if variance <= 1e6 else None

    def cumulative(k: int) -> float:  # P(X ≤ k)
        if above is None:
            return float(stats.norm.cdf((k + 0.5) / variance**0.5))
        return 1 - above[k] / 2**UNIT if k >= 0 else above[-k - 1] / 2**UNIT

    span = 2.2 * variance**0.5
    edges = sorted({round(span * t) for t in np.linspace(-1, 1, 61)})
    cells = np.searchsorted(np.array(edges), samples, side="left")
    counts = np.bincount(cells, minlength=len(edges) + 1)
    shares = np.diff([0.0, *(cumulative(edge) for edge in edges), 1.0])
    kept = shares * len(samples) > 20
    expected = np.append(shares[kept], 1 - shares[kept].sum()) * len(samples)
    found = np.append(counts[kept], len(samples) - counts[kept].sum())
    held = expected > 5
    statistic = float((((found - expected)[held]) ** 2 / expected[held]).sum())
    return float(stats.chi2.sf(statistic, held.sum() - 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("deviation", [0.5, 1.0, 11.3, 253.0, 300.0, 1900.0, 2.0**17 + 0.5])
def test_the_right_distribution_is_accepted_and_a_wrong_one_rejected(
    kind: Kind, deviation: float
) -> None:
    if kind == "skellam" and deviation > 1e4:
        deviation = 2500.0  # larger tables take seconds to build
    variance = deviation**2
    samples = np.zeros(300_000, dtype=np.int64)
    add_noise(kind, variance, samples, reproducible_bits(key(1, kind, str(deviation))))
    assert chi_square(samples, kind, variance) > 1e-4
    assert chi_square(samples, kind, variance * 1.04**2) < 1e-6
    assert chi_square(samples, kind, variance / 1.04**2) < 1e-6
    if deviation >= 1:  # a narrower discrete Gaussian has less variance than its parameter
        assert abs(samples.var() / variance - 1) < 6 * (2 / len(samples)) ** 0.5
    assert abs(samples.mean()) < 6 * deviation / len(samples) ** 0.5


def test_large_skellam_noise_is_a_sum_of_equal_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "LARGEST_STD", 4.0)
    samples = np.zeros(300_000, dtype=np.int64)
    add_noise("skellam", 100.0, samples, reproducible_bits(key(2, "parts")))
    assert chi_square(samples, "skellam", 100.0) > 1e-4
    assert chi_square(samples, "skellam", 100.0 * 1.04**2) < 1e-6


@given(high=st.integers(0, 5000), low=st.integers(0, 1023), step=st.integers(-(2**40), 2**40))
def test_rejection_decides_exactly_beside_its_threshold(high: int, low: int, step: int) -> None:
    variance = (1.5 * 2**19) ** 2
    with mpmath.workprec(400):
        exponent = mpmath.mpf(low * (2048 * high + low)) / (2 * mpmath.mpf(variance))
        threshold = mpmath.exp(-exponent) * mpmath.mpf(2) ** UNIT
    uniform = min(max(int(threshold) + step, 0), 2**UNIT - 1)
    coin, *more = parts(uniform, 16, 48, 192)
    word = np.array([coin[0] << 47 | low], dtype=np.uint64)
    steps = np.array([-high])
    sample, doubtful = rejection._propose(steps, word, variance)
    assert sample.tolist() == [1024 * high + low]
    accepted = rejection._accept(steps, word, variance, Scripted(*more))
    assert bool(accepted[0]) == (uniform < threshold)
    assert len(doubtful) or accepted[0], "what is not in doubt is accepted"


@pytest.mark.parametrize(("step", "low", "sign"), [(0, 0, 1), (0, 0, 0), (0, 1, 1), (1, 0, 1)])
def test_minus_zero_is_refused_and_nothing_else(step: int, low: int, sign: int) -> None:
    word = np.array([sign << 63 | low], dtype=np.uint64)  # a coin that always accepts
    steps, variance = np.array([step]), (1.5 * 2**19) ** 2
    assert rejection.low_bits_of(variance) == 10
    sample, doubtful = rejection._propose(steps, word, variance)
    size = 1024 * step + low
    assert sample.tolist() == [-size if sign else size]
    assert len(doubtful) == (size == 0 and sign)
    accepted = rejection._accept(steps, word, variance, Scripted((0, 48)))
    assert bool(accepted[0]) != (size == 0 and sign)


def test_coordinates_and_sources_are_independent() -> None:
    one, other = (np.zeros(200_001, dtype=np.int64) for _ in range(2))
    add_noise("skellam", 400.0, one, reproducible_bits(key(3, "noise", 1, 7)))
    add_noise("skellam", 400.0, other, reproducible_bits(key(3, "noise", 2, 7)))
    limit = 5 / len(one) ** 0.5
    assert abs(np.corrcoef(one, other)[0, 1]) < limit
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < limit
    assert abs(np.corrcoef(np.abs(one[1:]), np.abs(one[:-1]))[0, 1]) < limit
    assert (one[-1000:] != 0).any(), "the last, shorter block has its noise too"


def test_noise_is_added_to_what_is_there() -> None:
    plain, shifted = np.zeros(70_000, dtype=np.int64), np.full(70_000, 5, dtype=np.int64)
    for out in (plain, shifted):
        add_noise("discrete_gaussian", 90.0, out, reproducible_bits(key(4, "shift")))
    assert (shifted - plain == 5).all()


def test_zero_variance_adds_nothing_and_draws_nothing() -> None:
    out = np.arange(10, dtype=np.int64)
    bits = reproducible_bits(key(5, "zero"))
    add_noise("skellam", 0.0, out, bits)
    assert (out == np.arange(10)).all()
    assert bits.integer(64) == reproducible_bits(key(5, "zero")).integer(64)


@pytest.mark.parametrize(
    ("kind", "variance"),
    [
        ("skellam", -1.0),
        ("skellam", float("nan")),
        ("skellam", float("inf")),
        ("skellam", 2.0**45),
        ("discrete_gaussian", 2.0**89),
        ("discrete_gaussian", 2.0**-11),
    ],
)
def test_impossible_variances_are_refused(kind: Kind, variance: float) -> None:
    with pytest.raises(ValueError, match="variance"):
        add_noise(kind, variance, np.zeros(1, dtype=np.int64), secure_bits())


def test_a_variance_is_taken_as_the_fraction_it_is() -> None:
    """Nothing between the variance asked for and the table is rounded."""
    variance = 0.1  # not a decimal tenth
    with mpmath.workdps(110):
        exact = Fraction(variance)
        v = mpmath.mpf(exact.numerator) / exact.denominator
        wanted = mpmath.exp(-v) * mpmath.besseli(0, v)
        found = 1 - mpmath.mpf(2 * dict(survival("skellam", variance))[0]) / mpmath.mpf(2) ** UNIT
        assert abs(found - wanted) < mpmath.mpf(2) ** -200


def test_same_key_same_bits_and_other_labels_other_bits() -> None:
    first = reproducible_bits(key(1, "noise", 0, 0)).uint64(64)
    assert (first == reproducible_bits(key(1, "noise", 0, 0)).uint64(64)).all()
    for labels in (("noise", 0, 1), ("noise", 1, 0), ("rounding", 0, 0)):
        assert (first != reproducible_bits(key(1, *labels)).uint64(64)).all()


def test_bits_do_not_depend_on_how_they_are_taken() -> None:
    whole, parts = reproducible_bits(key(1, "a")), reproducible_bits(key(1, "a"))
    long = whole.uint64(100_000)
    pieces = [parts.uint64(n) for n in (1, 32_767, 32_768, 34_464)]
    assert (long == np.concatenate(pieces)).all()


def test_secure_sources_never_agree() -> None:
    assert (secure_bits().uint64(8) != secure_bits().uint64(8)).all()


def in_child(bits: RandomBits) -> bytes:
    """What a forked child draws, or the name of what it raised."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = bits.uint64(4).tobytes()
        except RuntimeError:
            answer = b"refused"
        os.write(write, answer)
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        return pipe.read()


def test_no_bit_is_used_again_after_a_fork() -> None:
    secure = secure_bits()
    secure.uint64(3)
    from_child = in_child(secure)
    assert len(from_child) == 32
    assert from_child != secure.uint64(4).tobytes()
    assert in_child(reproducible_bits(key(1, "fork"))) == b"refused"


@pytest.mark.parametrize("copying", [pickle.dumps, copy.copy, copy.deepcopy])
def test_sources_cannot_be_copied(copying: Any) -> None:
    with pytest.raises(TypeError, match="twice"):
        copying(secure_bits())


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        reproducible_bits(b"seed")

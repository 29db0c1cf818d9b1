"""Secret sharing: any t shares recover, fewer say nothing, wrong ones are noticed."""

from __future__ import annotations

import contextlib
import os
from operator import mul

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from pfl_lm import native
from pfl_lm.secagg.errors import MalformedMessage, Refused
from pfl_lm.secagg.sharing import (
    PRIME,
    SHARE_BYTES,
    _combine,
    _evaluate,
    _integer,
    _weights,
    check_share,
    recover,
    share,
)


@given(st.binary(min_size=32, max_size=32), st.sets(st.integers(0, 10**6), min_size=1), st.data())
def test_any_threshold_of_shares_recovers_the_secret(secret, holders, data):
    threshold = data.draw(st.integers(1, len(holders)))
    shares = share(secret, sorted(holders), threshold, os.urandom)
    kept = data.draw(st.permutations(sorted(holders)))[:threshold]
    some = {holder: shares[holder] for holder in kept}
    assert recover(some) == secret


def test_the_largest_secret_fits_the_field():
    shares = share(b"\xff" * 32, [0, 1, 2], 3, os.urandom)
    assert recover(shares) == b"\xff" * 32


def test_fewer_shares_than_the_threshold_are_uniform_whatever_the_secret():
    for secret in (bytes(32), b"\xff" * 32):
        values = [_integer(share(secret, [0, 1, 2], 3, os.urandom)[1]) for _ in range(4000)]
        assert stats.kstest(np.array([value / PRIME for value in values]), "uniform").pvalue > 1e-4


def test_a_flipped_bit_in_any_share_changes_or_destroys_the_secret():
    secret = os.urandom(32)
    shares = share(secret, range(5), 5, os.urandom)
    for holder in shares:
        for bit in range(0, 8 * SHARE_BYTES, 7):
            wrong = dict(shares)
            number = int.from_bytes(wrong[holder], "little") ^ (1 << bit)
            wrong[holder] = number.to_bytes(SHARE_BYTES, "little")
            with contextlib.suppress(MalformedMessage, Refused):
                assert recover(wrong) != secret


@pytest.mark.parametrize("wrong", [b"", bytes(32), bytes(34), PRIME.to_bytes(33, "little")])
def test_what_is_no_field_element_is_no_share(wrong):
    with pytest.raises(MalformedMessage):
        check_share(wrong)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((bytes(31), [0, 1], 2), "32 bytes"),
        ((bytes(32), [0, 0], 2), "distinct"),
        ((bytes(32), [0, -1], 2), "distinct"),
        ((bytes(32), [0, 1], 3), "threshold"),
        ((bytes(32), [0, 1], 0), "threshold"),
    ],
)
def test_impossible_sharings_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        share(*arguments, os.urandom)


EDGES = [0, 1, 2, 296, 297, 298, 2**64, 2**255, 2**256 - 1, 2**256, PRIME - 2, PRIME - 1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(EDGES) | st.integers(0, PRIME - 1), min_size=1, max_size=50),
    st.sets(st.integers(1, 2**32 - 1) | st.integers(1, 1000), min_size=1, max_size=50),
)
def test_the_compiled_field_is_the_integers_modulo_the_prime(coefficients, points):
    points = sorted(points, key=hash)
    if native.load("field") is None:
        pytest.skip("no C compiler")
    points = tuple(points)
    values, weights = _evaluate(coefficients, points), _weights.__wrapped__(points)
    for x, value in zip(points, values, strict=True):
        powers = (pow(x, at, PRIME) for at in range(len(coefficients)))
        assert value == sum(map(mul, reversed(coefficients), powers)) % PRIME
    shares = [value.to_bytes(SHARE_BYTES, "little") for value in values]
    combined = _combine(points, shares)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "load", lambda name: None)
        assert _evaluate(coefficients, points) == values
        assert _weights.__wrapped__(points) == weights
        assert _combine(points, shares) == combined
    if len(points) >= len(coefficients):
        assert combined == coefficients[-1]

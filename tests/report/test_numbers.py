"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from pfl_lm.report import numbers


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (numbers.percent, 0.3121, "31.2%"),
        (numbers.percent, None, "–"),
        (numbers.whole, 1234567.4, "1,234,567"),
        (numbers.short, 2_164_000, "2.16M"),
        (numbers.short, 372_000, "372k"),
        (numbers.short, 950, "950"),
        (numbers.significant, 108.23, "108"),
        (numbers.significant, 1234.5, "1,234"),
        (numbers.significant, 0.04567, "0.0457"),
        (numbers.significant, math.inf, "∞"),
        (numbers.significant, math.nan, "–"),
        (numbers.power, 1e-6, "10⁻⁶"),
        (numbers.power, 2.5e-7, "2.5 × 10⁻⁷"),
        (numbers.plain, 1000.0, "1,000"),
        (numbers.plain, 0.5, "0.5"),
        (numbers.size, 1_488_000, "1.5 MB"),
        (numbers.size, 640, "640 B"),
        (numbers.duration, 4.21, "4.2 s"),
        (numbers.duration, 200, "3 min 20 s"),
        (numbers.duration, 7500, "2 h 05 min"),
    ],
)
def test_text(function, value, text):
    assert function(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.9997, "2.00"), (2.0001, "2.01"), (2.0, "2.00"), (None, "∞"), (math.inf, "∞")],
)
def test_epsilon_is_never_rounded_down(value, text):
    assert numbers.epsilon(value) == text

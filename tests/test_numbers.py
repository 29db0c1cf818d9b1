"""Numbers as people read them."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm import numbers

PACKAGE = Path(numbers.__file__).parent


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
    [
        (1.9997, "2.000"),
        (2.0001, "2.001"),
        (2.0, "2.000"),
        (0.1, "0.100"),  # as the policy states it, though the float lies above a tenth
        (1e-9, "0.001"),
        (0.0, "0.000"),
        (999.9999, "1,000.000"),
        (1234.2, "1,235"),
        (1.21e7, "1.3e+07"),
        (9.99e7, "1.0e+08"),
        (None, "∞"),
        (math.inf, "∞"),
        (math.nan, "∞"),
    ],
)
def test_an_epsilon_has_three_decimals_and_is_never_rounded_down(value, text):
    assert numbers.format_epsilon(value) == text


def test_an_absent_epsilon_is_marked_as_the_reader_needs_it():
    assert numbers.format_epsilon(None, "–") == "–"


@given(st.floats(0, 1e12))
def test_a_printed_epsilon_bounds_the_real_one(value):
    printed, bound = (
        Decimal(show(value).replace(",", ""))
        for show in (numbers.format_epsilon, numbers.format_epsilon_bound)
    )
    assert bound <= Decimal(repr(value)) <= printed


@given(st.floats(1e-300, 1))
def test_a_printed_delta_is_never_below_the_real_one(value):
    mantissa, _, exponent = numbers.format_delta(value).rpartition("10")
    power = Decimal(exponent.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))
    printed = Decimal(mantissa.removesuffix(" × ") or "1").scaleb(int(power))
    assert Decimal(repr(value)) <= printed <= Decimal(repr(value)) * Decimal("1.00001")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-6, "10⁻⁶"), (1 / 26_886, "3.71941 × 10⁻⁵"), (1.04e-6, "1.04 × 10⁻⁶"), (None, "–")],
)
def test_a_delta_is_printed_as_it_is_stated(value, text):
    assert numbers.format_delta(value) == text


def test_no_delta_is_printed_as_the_nearest_round_number():
    found = [
        f"{path.name}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("power", "significant")
        if "delta" in ast.unparse(node.args[0])
    ]
    assert found == []


def test_every_epsilon_in_a_sentence_is_printed_by_the_one_function():
    """A number after "ε" is neither cut by a format of its own nor pasted as it is."""
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                wrong += [f"{path.name}:{line}" for line in _pasted(node)]
    assert wrong == []


def _pasted(text: ast.JoinedStr) -> Iterator[int]:
    """Yield the lines of values that follow "ε =" and its like with digits of their own."""
    for before, value in pairwise(text.values):
        if not (isinstance(before, ast.Constant) and isinstance(value, ast.FormattedValue)):
            continue
        if not re.search(
            r"(ε|\bepsilon)( against the server)?( =| ≥| ≤| is| to| would be)? $", str(before.value)
        ):
            continue
        called = isinstance(value.value, ast.Call) and "format_epsilon" in ast.unparse(value.value)
        named = isinstance(value.value, ast.Name) and value.value.id in PRINTED
        recorded = "_rounded_up" in ast.unparse(value.value)  # into a policy, for programs
        if value.format_spec is not None or not (called or named or recorded):
            yield value.lineno


# Names of texts that ``format_epsilon`` made.
PRINTED = {"allowed", "cohorts", "epsilon", "fewer", "models", "proven", "released", "server",
           "shown", "spent", "stated", "with_90"}  # fmt: skip

"""Numbers the way a person reads them."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

MISSING = "–"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def is_number(value: Any) -> bool:
    """Tell finite numbers from absent, infinite and other values."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def percent(value: Any, digits: int = 1) -> str:
    """0.3121 → 31.2%."""
    return f"{100 * value:.{digits}f}%" if is_number(value) else MISSING


def whole(value: Any) -> str:
    """1234567.0 → 1,234,567."""
    return f"{round(value):,}" if is_number(value) else MISSING


def short(value: Any) -> str:
    """1234567 → 1.23M; three significant digits at most."""
    if not is_number(value):
        return MISSING
    for size, unit in ((1e9, "bn"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return whole(value) if float(value).is_integer() else significant(value)


def significant(value: Any, digits: int = 3) -> str:
    """Three significant digits, without an exponent where a person would not write one."""
    if not is_number(value):
        return "∞" if value == math.inf else MISSING
    if value == 0:
        return "0"
    if abs(value) < 1e-4 or abs(value) >= 1e9:
        return power(value, digits)
    if abs(value) >= 10**digits:
        return whole(value)
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def plain(value: float) -> str:
    """A round number at an axis: 0.5, 20, 1,000, 2 × 10⁷."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return power(value, 3)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def format_perplexity(value: Any) -> str:
    """330.6; None is ∞, as JSON has none."""
    return f"{value:.1f}" if is_number(value) else "∞"


def power(value: Any, digits: int = 2) -> str:
    """1e-06 → 10⁻⁶; 2.5e-7 → 2.5 × 10⁻⁷."""
    if not is_number(value) or value == 0:
        return "0" if value == 0 else MISSING
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    ten = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return ten if mantissa == "1" else f"{mantissa} × {ten}"


def rounded_up(value: float, digits: int = 6) -> float:
    """Return the least number of so many significant digits that is not below a positive one."""
    return float(Context(prec=digits, rounding=ROUND_CEILING).create_decimal(repr(float(value))))


def format_delta(value: Any) -> str:
    """Print a δ: 1e-6 → 10⁻⁶; 1/26,886 → 3.71941 × 10⁻⁵.

    Six digits at most, rounded up: an ε holds at every larger δ, and at no smaller one.
    """
    return power(rounded_up(value), 6) if is_number(value) else MISSING


def format_epsilon(value: float | None, missing: str = "∞") -> str:
    """Print an ε (or a ρ) with three decimals, rounded up: never less than what is proven.

    The float is read as the shortest decimal that names it, so a policy's 0.1 is printed as 0.100.

    ==================  =========================================
    value               text
    ==================  =========================================
    1.9997              2.000
    0.00001             0.001
    102.5321            102.533
    1,234.2             1,235, whole from 1,000 on
    1.21e7              1.3e+07, two digits from a million on
    ∞, NaN              ∞: what is not known is not promised
    None                ``missing``; JSON has no ∞ and holds None
    ==================  =========================================
    """
    if value is None:
        return missing
    return _three_decimals(value, ROUND_CEILING)


def format_epsilon_bound(value: float) -> str:
    """Print a lower bound on ε with the digits of ``format_epsilon``, rounded down."""
    return _three_decimals(value, ROUND_FLOOR)


def _three_decimals(value: float, rounding: str) -> str:
    if not value < math.inf:  # NaN is not
        return "∞"
    exact = Decimal(repr(float(value)))
    if abs(exact) >= 1_000_000:
        step = Decimal(1).scaleb(exact.adjusted() - 1)
        return f"{float(exact.quantize(step, rounding)):.1e}"
    step = Decimal(1) if abs(exact) >= 1000 else Decimal("0.001")
    return f"{exact.quantize(step, rounding):,}"


def size(value: Any) -> str:
    """Bytes: 1234567 → 1.2 MB."""
    if not is_number(value):
        return MISSING
    for power_of_ten, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= power_of_ten:
            return f"{value / power_of_ten:.{0 if value >= 100 * power_of_ten else 1}f} {unit}"
    return f"{round(value)} B"


def duration(seconds: Any) -> str:
    """Seconds as 2 h 05 min, 3 min 20 s, 4.2 s."""
    if not is_number(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"

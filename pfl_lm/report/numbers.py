"""Numbers the way a person reads them."""

from __future__ import annotations

import math
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
    if abs(value) >= 10**digits:
        return whole(value)
    if abs(value) < 1e-4:
        return power(value, digits)
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def plain(value: float) -> str:
    """A round number at an axis: 0.5, 20, 1,000."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def power(value: Any, digits: int = 2) -> str:
    """1e-06 → 10⁻⁶; 2.5e-7 → 2.5 × 10⁻⁷."""
    if not is_number(value) or value == 0:
        return "0" if value == 0 else MISSING
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    ten = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return ten if mantissa == "1" else f"{mantissa} × {ten}"


def epsilon(value: Any) -> str:
    """Round ε up, never down: a page must not promise more than was proven."""
    if value is None or value == math.inf:
        return "∞"
    if not is_number(value):
        return MISSING
    return f"{math.ceil(100 * value - 1e-9) / 100:,.2f}" if value < 1e4 else f"{value:.1e}"


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

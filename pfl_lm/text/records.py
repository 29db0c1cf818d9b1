"""Messages by user, and the one rule for ids and text that every reader keeps.

A person who is not named is not a user: rows without an id would otherwise become one user, and
a guarantee for users would cover none of the people behind those rows.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, NamedTuple

from pfl_lm.text.compressed import LONGEST_LINE

# What stands where an id is missing: pandas' own list, databases, and what str() makes of the rest.
_NOBODY = frozenset({
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN", "<NA>", "NA", "NaT",
    "\\N",
})  # fmt: skip
_NOBODY_IN_ANY_CASE = frozenset({
    "n/a", "nan", "-nan", "none", "null", "(null)", "<null>", "undefined", "[deleted]", "[removed]",
})  # fmt: skip
_WHOLE = re.compile(r"(0|-?[1-9][0-9]*)\.0+")  # how a table spells a number that became a float
_EXACT = 1 << 53  # a float beyond has lost digits: two ids may have become one


class Message(NamedTuple):
    """One message of one user; ``split`` is None where users are split by their digest."""

    user: str
    text: str
    split: str | None = None


class Malformed(NamedTuple):
    """One record that could not be read; ``line`` counts from 1 (or records, without lines)."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


Record = Message | Malformed


def user_id(value: Any) -> str:
    """Return the id that a value of any format states.

    | value | id |
    |---|---|
    | text that holds a visible character | the text in NFC, without blanks around it |
    | a whole number, a float that is whole and exact (7.0, "7.0") | its digits: ``7`` |
    | nothing, NaN, ∞, true, 7.5, blank text, text such as ``nan`` or ``None`` | ValueError |
    | bytes, lists, dates, anything else | ValueError |

    Ids that differ in case are two users.
    """
    if isinstance(value, str):
        return _text_id(_unicode(value))
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, Real | Decimal) and not isinstance(value, bool):
        exact = value if isinstance(value, Decimal) else float(value)
        if not math.isfinite(exact):
            raise ValueError(f"{value} stands for a missing id")
        if exact != int(exact) or (isinstance(exact, float) and abs(exact) > _EXACT):
            raise ValueError(f"{value} is no whole number, or too large to be exact")
        return str(int(exact))
    raise ValueError(f"it is {_kind(value)}, not text or a whole number")


def _text_id(value: str) -> str:
    """Return the id that a text states: all spellings of one id are one user."""
    plain = _trimmed(value)
    if plain in _NOBODY or plain.lower() in _NOBODY_IN_ANY_CASE:
        raise ValueError(f"{plain!r} stands for a missing id")
    return plain.partition(".")[0] if _WHOLE.fullmatch(plain) else plain


def _trimmed(value: str) -> str:
    if value.isascii() and value.isprintable() and (plain := value.strip(" ")):
        return plain
    plain = unicodedata.normalize("NFC", value)
    seen = [at for at, letter in enumerate(plain) if letter.isprintable() and letter != " "]
    if not seen:
        raise ValueError("it is blank")
    return plain[seen[0] : seen[-1] + 1]


def message_text(value: Any) -> str:
    """Return the text that a value of any format states; ValueError for anything but text."""
    if not isinstance(value, str):
        raise ValueError(f"it is {_kind(value)}")
    if len(value) > LONGEST_LINE:
        raise ValueError(f"it is longer than {LONGEST_LINE:,} characters")
    return _unicode(value)


def read_record(
    user: Any,
    text: Any,
    file: str,
    line: int,
    names: tuple[str, str] = ("user", "text"),
    split: str | None = None,
) -> Record:
    """Return one record by the rule above.

    Args:
        user, text: the values as a format holds them.
        file, line: where they are, for what is malformed.
        names: of the two fields there.
        split: that the record states, or None.
    """
    try:
        who = user_id(user)
    except ValueError as error:
        return Malformed(file, line, f"field {names[0]!r} holds no user id: {error}")
    try:
        return Message(who, message_text(text), split)
    except ValueError as error:
        return Malformed(file, line, f"field {names[1]!r} holds no text: {error}")


def user_digest(user: str, split_key: str) -> tuple[bytes, float]:
    """Return the 16 bytes that stand for a user id, and the user's draw in [0, 1) for the split."""
    digest = hashlib.blake2b(
        user.encode(errors="surrogatepass"), digest_size=24, key=split_key.encode()
    ).digest()
    return digest[:16], int.from_bytes(digest[16:], "big") / 2**64


def brief(error: BaseException) -> str:
    """Return one short line that says what is wrong with a record."""
    if isinstance(error, KeyError):
        return f"field {error.args[0]!r} is missing"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return " ".join(str(error).split())[:160] or type(error).__name__


def _unicode(value: str) -> str:
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            byte = "\udc80" <= value[error.start] <= "\udcff"  # as ``tables`` keeps such a byte
            problem = "not UTF-8" if byte else "no Unicode text: half of a surrogate pair"
            raise ValueError(f"it is {problem}") from None
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "empty"
    return {"list": "a list", "dict": "an object", "bool": "true or false"}.get(
        type(value).__name__, f"a value of type {type(value).__name__}"
    )
